"""`docs/methods.md`, written from the catalogue: `python -m tasks.methods.document > docs/methods.md`."""

from __future__ import annotations

from tasks.methods.catalogue import METHODS, Method

HEAD = """# Methods

Written from `tasks/methods/catalogue.py` by `python -m tasks.methods.document`; a test holds the two together. A spec
names a row in `method.name`. Every row that trains is trained for real in the tests on a tiny base, in NF4 and in
float32 where the row says so, for generation and for classification: it starts with the base's own logits where the row
says so (compared on the causal model), trains exactly the parameters of its formula, reloads to the same logits, and
beats the untouched base on held-out rows. What of it merges stands in docs/merging.md.
"""
COMPARED = """
## Compared on a task

`factory compare SPEC --methods lora,ia3 --ranks 4,16 --seeds 3` trains each method at each rank (once where the method
has none; alpha / rank stays, with `--keep-alpha` alpha) and puts them side by side: share of parameters that train,
peak of memory, seconds, bytes of the adapter, score with its interval, forgetting, and the cost of a forward pass. The
table stands in a run of MLflow with every training under it, and on a page of its own.

- Peak: above what was held when training began. On a CPU each training has a fresh process, a fork of one that has
  loaded the libraries and computed nothing, so that no run finds the blocks of the one before.
- Forgetting: how many nats per token more the adapter's model is surprised by text that the untouched base wrote
  itself; a classifier writes none.
- Pass attached, pass merged: over the base's own, on the first test rows; the three are timed in turn for some rounds,
  and the median counts. Merged is a copy of the base with the exact update in its weights, rounded to NF4 again on an
  NF4 base; what is exported is not rounded so.
- Several seeds have a mean, with Student's interval over their scores.
"""


def methods_page() -> str:
    """The whole page.

    >>> "| `lora` |" in methods_page()
    True
    """
    trained = [row for row in METHODS.values() if not row.refused]
    columns = (
        "method",
        "trainable parameters",
        "`rank` means",
        "on NF4",
        "classes",
        "starts as the base",
        "merges away",
    )
    lines = [HEAD, _line(columns), _line(["---"] * len(columns)), *(_line(_cells(row)) for row in trained)]
    lines += [COMPARED.rstrip("\n")]
    lines += ["", "## What each row is", "", *(_described(row) for row in trained)]
    lines += ["", "## Known and refused", ""]
    lines += [f"- `{row.name}` ({row.title}; {row.paper}): {row.refused}." for row in METHODS.values() if row.refused]
    return "\n".join(lines) + "\n"


def _cells(row: Method) -> list[str]:
    return [
        f"`{row.name}`",
        row.formula,
        row.rank_means or "nothing",
        f"no: {row.not_on_nf4}" if row.not_on_nf4 else "yes",
        f"no: {row.not_for_classes}" if row.not_for_classes else "yes",
        "yes" if row.starts_as_base else "no",
        "yes" if row.mergeable else "no",
    ]


def _described(row: Method) -> str:
    update = f" Exact update: {row.update}." if row.update else " No exact update."
    factor = f" B's rate is {row.b_rate:g} times A's." if row.b_rate != 1 else ""
    return f"- `{row.name}`: {row.title}.{update}{factor}{f' {row.paper}.' if row.paper else ''}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(methods_page(), end="")
