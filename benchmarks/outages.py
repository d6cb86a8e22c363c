"""What an MLflow that is killed, slow, wrong or silent costs a training, and whether every metric arrives once.

Real training steps on the small base, in pairs in one process: a run that tells a real `mlflow server`, through a proxy
that can be told to fail, beside the same run that tells nobody. Each is a process of its own. The fault holds from a
third to two thirds of the run. A pair of two silent runs shows how much the machine alone varies.

    python benchmarks/outages.py [--pairs 8] [--steps 300]

`slowdown` is the median over pairs of (time of all steps, telling / silent) - 1 with its quartiles, by the clock. What
it costs whatever else the machine does is `told_share`, the part of the run that was spent in telling, and
`sender_share`, the processor time of the thread that delivers beside that of the one that trains. `end_seconds` is the
longest wait at a run's end. The last line is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

from registry.tracking import Tracker

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")
FAULTS = ("none", "killed", "slow", "500", "hang")
SILENT = "two silent runs"
SLOW_SECONDS, WARM_UP = 1.0, 5
METRICS = ("loss", "rate", "grad_norm")


class MlflowServer:
    """`mlflow server` as people run it, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (self.folder / "server.log").open("ab")
        environment = {**os.environ, **quiet}
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.folder / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


class Between(BaseHTTPRequestHandler):
    """A proxy in front of it with a switch: pass, 500, slow, hang."""

    def answer(self) -> None:
        mode = FAULTS[self.server.mode.value]  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if mode == "hang":
            while FAULTS[self.server.mode.value] == "hang":  # type: ignore[attr-defined]
                time.sleep(0.05)
            return
        if mode == "slow":
            time.sleep(SLOW_SECONDS)
        if mode == "500":
            self.reply(500, b"oops", "text/plain")
            return
        line = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=30)  # type: ignore[attr-defined]
        try:
            line.request(self.command, self.path, body or None, {"Content-Type": "application/json"})
            said = line.getresponse()
            self.reply(said.status, said.read(), said.headers.get("Content-Type", "application/json"))
        except OSError:
            self.close_connection = True
        finally:
            line.close()

    def reply(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        pass


class Outage:
    """A server, a proxy before it, and the faults that the two can be put into."""

    def __init__(self, folder: Path) -> None:
        self.server, self.mode = MlflowServer(folder), FORK.Value("i", 0)
        proxy: Any = ThreadingHTTPServer(("127.0.0.1", 0), Between)
        proxy.daemon_threads, proxy.mode, proxy.behind = True, self.mode, self.server.port
        self.uri = f"http://127.0.0.1:{proxy.server_port}"
        self.proxy = FORK.Process(target=proxy.serve_forever, daemon=True)
        self.proxy.start()
        proxy.socket.close()

    def begin(self, fault: str) -> None:
        if fault == "killed":
            self.server.kill()
        else:
            self.mode.value = FAULTS.index(fault)

    def end(self) -> None:
        """Who was killed comes back later: its start is no part of the run."""
        self.mode.value = 0

    def __enter__(self) -> Outage:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.server.kill()
        self.proxy.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Took(NamedTuple):
    """Time by the clock, and of the processor: in the thread that trains, and in all others of this process."""

    seconds: float
    cpu_seconds: float
    others_cpu_seconds: float

    @classmethod
    def now(cls) -> Took:
        own = time.thread_time()
        return cls(time.perf_counter(), own, time.process_time() - own)

    def since(self, began: Took) -> Took:
        return Took(*(after - before for after, before in zip(self, began, strict=True)))


def training(base: Path, steps: int, scratch: Path) -> Callable[[Callable[[Any], None]], Took]:
    """A small run: told of each step, it returns what all steps after the first few took."""
    import torch

    from tasks.data.examples import Example, key_of
    from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, TrainingSpec
    from tasks.training.base import load_base
    from tasks.training.loop import train_adapter

    torch.set_num_threads(1)
    draw = random.Random(1)
    texts = [" ".join(draw.choices(["parcel", "refund", "invoice", "late", "card"], k=9)) for _ in range(400)]
    rows = [Example(key_of(t), f"{t} ->", f" {t.split()[0]}", i) for i, t in enumerate(sorted(set(texts)))]
    spec = AdapterSpec(
        task="outage",
        kind="generation",
        base=BaseSpec(model=str(base)),
        data=DataSpec(source="/rows.jsonl", prompt="{text} ->", completion=" {label}"),
        method=MethodSpec(rank=4),
        training=TrainingSpec(steps=steps, batch_size=8, validations=1),
    )
    loaded = load_base(spec.base, kind="generation", device="cpu")

    def run(told: Callable[[Any], None]) -> Took:
        moments: list[Took] = []

        def on_step(step: Any) -> None:
            moments.append(Took.now())
            told(step)

        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            train_adapter(loaded, spec, rows[8:], rows[:8], Path(folder), on_step=on_step)
        return moments[-1].since(moments[WARM_UP])

    return run


class Trial(NamedTuple):
    """One pair of runs: what telling cost, and what came of what was told."""

    slowdown: float  # by the clock
    sender_share: float  # of the processor, in the threads beside the one that trains
    told_share: float = 0.0
    end_seconds: float = 0.0
    lost: int = 0
    doubled: int = 0


def pair(
    run: Callable[[Callable[[Any], None]], Took], tracker: Tracker, outage: Outage, fault: str, name: str, steps: int
) -> Trial:
    """A silent run and one that tells MLflow, which has the fault from a third to two thirds of it."""
    silent, said_seconds = run(lambda step: None), []

    def told(step: Any) -> None:
        if step.step == steps // 3:
            outage.begin(fault)
        if step.step == 2 * steps // 3:
            outage.end()
        began = time.perf_counter()
        telling.log_steps([{"step": step.step, **{metric: getattr(step, metric) for metric in METRICS}}])
        said_seconds.append(time.perf_counter() - began)

    with tracker.run(name=name, experiment="outages", params={"rank": 4}) as telling:
        took = run(told)
        ended = time.perf_counter()
    end_seconds = time.perf_counter() - ended
    if fault == "killed":
        outage.server.start()
    deadline = time.monotonic() + 60
    while any(tracker.spool.iterdir()) and time.monotonic() < deadline:
        tracker.deliver()
    lost, doubled = arrived(outage.server.folder / "mlflow.db", name, steps)
    return Trial(*compared(took, silent), sum(said_seconds) / took.seconds, end_seconds, lost, doubled)


def compared(took: Took, silent: Took) -> tuple[float, float]:
    """(time beyond that of the silent run, as a share of it; processor time of other threads, as a share of ours)."""
    return took.seconds / silent.seconds - 1, took.others_cpu_seconds / took.cpu_seconds


def arrived(database: Path, name: str, steps: int) -> tuple[int, int]:
    """(points that are missing, points that are there twice) of one run, as MLflow's database has them."""
    with sqlite3.connect(database, timeout=30) as connection:
        query = "SELECT key, step FROM metrics JOIN runs USING (run_uuid) WHERE name = ?"
        points = [row for row in connection.execute(query, [name]) if row[0] in METRICS]
    return len(METRICS) * steps - len(set(points)), len(points) - len(set(points))


def figures(trials: list[Trial]) -> dict[str, float]:
    """Medians over pairs, the quartiles by the clock where there are several, and the worst of the rest."""
    clock = [trial.slowdown for trial in trials]
    low, _, high = statistics.quantiles(clock, n=4) if len(clock) > 1 else clock * 3
    found = {
        "slowdown": statistics.median(clock),
        "lower_quartile": low,
        "upper_quartile": high,
        "sender_share": statistics.median(trial.sender_share for trial in trials),
        "told_share": max(trial.told_share for trial in trials),
        "end_seconds": max(trial.end_seconds for trial in trials),
    }
    return {key: round(value, 4) for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--interval", type=float, default=2.0, help="seconds between two deliveries; 2 is the tracker's"
    )
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "base")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    trials: dict[str, list[Trial]] = {kind: [] for kind in (SILENT, *FAULTS)}
    with tempfile.TemporaryDirectory(prefix="factory-outages-") as folder, Outage(Path(folder)) as outage:
        run = training(asked.base, asked.steps, Path(folder))
        tracker = Tracker(outage.uri, folder=folder, interval_seconds=asked.interval)
        run(lambda step: None)  # what only the first one pays
        for number in range(asked.pairs):
            for kind, found in trials.items():
                if kind == SILENT:
                    found.append(Trial(*compared(run(lambda step: None), run(lambda step: None))))
                else:
                    found.append(pair(run, tracker, outage, kind, f"{kind} {number}", asked.steps))
                last = found[-1]
                shares = f"sender {last.sender_share:.2%} of the processor, telling {last.told_share:.2%} of the time"
                print(f"{number} {kind:16} {last.slowdown:+.1%} by the clock, {shares}", flush=True)
    each = {kind: figures(found) for kind, found in trials.items()}
    told = [trial for kind in FAULTS for trial in trials[kind]]
    cost = max(each[kind]["sender_share"] + each[kind]["told_share"] for kind in FAULTS)
    worst = {"worst_slowdown": max(each[kind]["slowdown"] for kind in FAULTS), "worst_cost_share": round(cost, 4)}
    counts = {"lost": sum(trial.lost for trial in told), "doubled": sum(trial.doubled for trial in told)}
    print(json.dumps({**worst, **counts, "pairs": asked.pairs, "steps": asked.steps, "faults": each}))


if __name__ == "__main__":
    main()
