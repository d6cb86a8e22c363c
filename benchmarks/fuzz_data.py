"""Data files damaged by chance, through the door: `python benchmarks/fuzz_data.py 2000` (`make fuzz-data`).

A good file of 60 rows in one of three formats is cut, repeated, overwritten, or spliced with what breaks readers; the
door answers with a set in which every row is accounted for, or refuses in lines of its own. Anything else is a bug.
"""

from __future__ import annotations

import csv
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.data.door import admit
from tasks.data.validation import great_expectations
from tasks.errors import DataRefused
from tasks.specs import AdapterSpec, BaseSpec, DataSpec

FORMATS = ("jsonl", "csv", "parquet")
SLOWEST_SECONDS = 5.0  # of the processor
ROWS = [
    {"text": f"complaint {at} about a late card, nr {at * 37}", "label": ("card", "fee")[at % 2]} for at in range(60)
]
SPLICES = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"PAR1", b"\xe9", b"\\", b"\\ud800"),
    *(b"\r", b"\n", b"\r\n", b'"', b'""', b"'", b",", b"{", b"}", b"[" * 500, b"9" * 5000, b"A" * 70_000),
    *(b"null", b"NaN", b"1e999", b"-0", b"true", b"text", b"label", b'{"text": {"a": [1]}}', b'{"text": 1, "text": 2}'),
    *("\u200b".encode(), "\u202e".encode(), "漢字".encode()),
)


def good_file(form: str) -> bytes:
    """The rows in a format, as a program would write them."""
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if form == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
        return text.getvalue().encode()
    stored = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), stored)
    return stored.getvalue().to_pybytes()


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The bytes after one to four accidents."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) + 1)
        to = min(len(content), at + draw.choice((1, 2, 8, 64, 512)))
        accident = draw.randrange(7)
        if accident == 0:
            content = content[:at]
        elif accident == 1:
            content = content[:at] + content[to:]
        elif accident == 2:
            content = content[:to] + content[at:to] * draw.choice((1, 2, 50)) + content[to:]
        elif accident == 3:
            content = content[:at] + draw.choice(SPLICES) + content[at:]
        elif accident == 4:
            content = content[:at] + draw.randbytes(to - at) + content[to:]
        elif accident == 5 and content:
            place = draw.randrange(len(content))
            content = content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]
        else:
            content = content[to:] + content[:at]
    return content


def answer(path: Path) -> str:
    """What the door says of a file: `admitted`, or the code of the first problem.

    Raises:
        AssertionError: a row is lost from the count, a refusal has no place or a line break, or it took too long.
    """
    spec = AdapterSpec(
        task="fuzz",
        kind="classification",
        base=BaseSpec(model="/base"),
        data=DataSpec(source=str(path), max_quarantined=0.5, min_rows=5),
    )
    began = time.process_time()
    try:
        admission = admit(spec)
    except DataRefused as refused:
        placeless = [problem for problem in refused.problems if str(path) not in problem.where or "\n" in str(problem)]
        if placeless or not refused.problems:
            raise AssertionError(f"no line with a place: {placeless}") from None
        verdict = refused.problems[0].code
    else:
        counted = admission.accepted + len(admission.quarantined) + admission.deduplicated
        assert admission.rows_in == counted, f"{admission.rows_in} rows in, {counted} counted"
        if path.suffix == ".jsonl":
            lines = [line for line in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
            assert admission.rows_in == len(lines), f"{len(lines)} lines, {admission.rows_in} rows in"
        verdict = "admitted"
    seconds = time.process_time() - began
    assert seconds < SLOWEST_SECONDS, f"{seconds:.1f} s"
    return verdict


def campaign(count: int, seed: int, say: Callable[[str], None] = lambda line: None) -> Counter[str]:
    """Answers to `count` damaged files, counted; the first that is none is raised, with the file kept beside."""
    great_expectations()  # its import is no file's fault
    draw, answers = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            form = FORMATS[number % len(FORMATS)]
            path = Path(folder, f"{number}.{form}")
            path.write_bytes(mutated(good_file(form), draw))
            try:
                answers[answer(path)] += 1
            except Exception as error:
                kept = Path(tempfile.gettempdir(), f"fuzz-{seed}-{path.name}")
                kept.write_bytes(path.read_bytes())
                raise AssertionError(
                    f"seed {seed}, file {number} (kept as {kept}): {type(error).__name__}: {error}"
                ) from error
            path.unlink()
            if not (number + 1) % 100:
                say(f"{number + 1} of {count} files: {dict(answers.most_common())}")
    return answers


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    began = time.monotonic()
    found = campaign(asked, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0, say=print)
    print(
        json.dumps({"files": asked, "answers": dict(found.most_common()), "seconds": round(time.monotonic() - began)})
    )
