"""Training killed at random instants, again and again, against the same training left in peace: bytes compared.

Each trial is a run in a forked child with a checkpoint after every step. SIGKILL comes after a random part of a
straight run's time, or at a random place inside the writing of a checkpoint; then a new child goes on, until one comes
to the end. Libraries are imported once and the base is loaded once, so a life costs about what its steps cost.

    make kill-campaign                      200 runs, up to 4 kills each
    python benchmarks/kill_campaign.py --runs 20

The last line is JSON: runs, identical, kills, torn checkpoints that were seen, errors. Exit 1 unless all are identical.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS, ROWS = 12, 48


@dataclass
class Campaign:
    """What came of it so far."""

    runs: int = 0
    identical: int = 0
    kills: int = 0
    torn: int = 0
    errors: int = 0
    seconds: float = 0.0


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--runs", type=int, default=20)
    asked.add_argument("--kills", type=int, default=4, help="at most this many per run")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--base", type=Path, default=ROOT / "examples" / "base")
    options = asked.parse_args()
    warnings.simplefilter("ignore")  # each child would repeat what the libraries have to say
    found = campaign(options.base, options.runs, options.kills, options.seed, note=lambda text: print(text, flush=True))
    print(json.dumps(asdict(found)))
    return 0 if found.identical == found.runs and not found.errors else 1


def campaign(base: Path, runs: int, kills: int, seed: int, note: Callable[[str], None] = lambda text: None) -> Campaign:
    """`runs` trainings, each killed up to `kills` times at instants drawn from the seed."""
    import torch

    torch.set_num_threads(1)  # a forked child has no threads but its own
    train = training(base)
    began, draw, found = time.monotonic(), random.Random(seed), Campaign()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        straight = time.monotonic()
        assert in_a_child(lambda: train(place / "straight", None), None) == 0
        straight = time.monotonic() - straight
        wanted = digest(place / "straight")
        for number in range(runs):
            folder, kept = place / f"run-{number}", place / f"kept-{number}"
            code = -signal.SIGKILL
            for _ in range(kills):
                places, patience = draw.randint(1, 5 * STEPS), draw.uniform(0.02, 1.3) * straight
                if draw.random() < 0.5:
                    code = in_a_child(lambda: train(folder, kept), patience)  # noqa: B023
                else:
                    code = in_a_child(lambda: train(folder, kept, dying_at(places)), None)  # noqa: B023
                found.kills += code == -signal.SIGKILL
                found.torn += bool(list(kept.glob(".staging-*")))
                if code != -signal.SIGKILL:
                    break
            if code == -signal.SIGKILL:
                code = in_a_child(lambda: train(folder, kept), None)  # noqa: B023
            found.runs += 1
            found.errors += code != 0
            same = code == 0 and digest(folder) == wanted
            found.identical += same
            if not same:
                note(f"run {number}: exit {code}, not the same bytes (seed {seed})")
            elif found.runs % 20 == 0:
                note(f"{found.identical} of {found.runs} identical after {found.kills} kills")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(kept, ignore_errors=True)
    found.seconds = round(time.monotonic() - began, 1)
    return found


def dying_at(places: int) -> Callable[[str], None]:
    """Killed at the n-th place of all checkpoint writes."""
    turns = itertools.count(1)

    def reached(name: str) -> None:
        if next(turns) == places:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


def training(base: Path) -> Callable[..., Any]:
    """A small run with everything that draws: (adapter folder, checkpoint folder, told of each place) -> trained."""
    from tasks.data.examples import Example, key_of
    from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, TrainingSpec
    from tasks.training.base import load_base
    from tasks.training.checkpoint import Checkpoints
    from tasks.training.loop import train_adapter

    draw = random.Random(1)
    words = ["parcel", "refund", "invoice", "late", "broken", "card", "please", "where", "order", "my", "the"]
    texts = {" ".join(draw.choices(words, k=draw.randint(2, 9))) for _ in range(2 * ROWS)}
    rows = [Example(key_of(t), f"{t} ->", f" {words[len(t) % 5]}", i) for i, t in enumerate(sorted(texts)[:ROWS])]
    spec = AdapterSpec(
        task="killed",
        kind="generation",
        base=BaseSpec(model=str(base)),
        data=DataSpec(source="/rows.jsonl", prompt="{text} ->", completion=" {label}"),
        method=MethodSpec(rank=4, dropout=0.2),
        training=TrainingSpec(steps=STEPS, batch_size=4, validations=3, learning_rate=2e-3, checkpoint_minutes=0),
    )
    loaded = load_base(spec.base, kind="generation", device="cpu")

    def train(folder: Path, kept: Path | None, reached: Callable[[str], None] = lambda name: None) -> Any:
        checkpoints = Checkpoints(kept, "killed", reached=reached) if kept else None
        return train_adapter(loaded, spec, rows[8:], rows[:8], folder, checkpoints=checkpoints)

    return train


def in_a_child(work: Callable[[], Any], killed_after_seconds: float | None) -> int:
    """Exit code of a forked child; -9 if it was killed before it came to the end."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    timer = None
    if killed_after_seconds is not None:
        timer = threading.Timer(killed_after_seconds, os.kill, (child, signal.SIGKILL))
        timer.start()
    _, status = os.waitpid(child, 0)
    if timer is not None:
        timer.cancel()
        timer.join()
    return os.waitstatus_to_exitcode(status)


def digest(folder: Path) -> Sequence[tuple[str, str]]:
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())]


if __name__ == "__main__":
    sys.exit(main())
