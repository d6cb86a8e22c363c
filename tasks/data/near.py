"""Inputs that are nearly the same: MinHash sketches (Broder 1997) find candidates, their exact Jaccard index decides.

Two texts are compared as sets of 5-character shingles of their normalised form. The sketch has 120 minima in 20 bands
of 6 (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4): a pair of similarity s shares a band with
probability 1 - (1 - s^6)^20, which is 0.998 at 0.8 and 0.00002 at 0.1. The minima come from `rensa`; numpy hashes the
shingles, since a Python string for each would cost more than everything else that the door does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tasks.data.examples import normalised

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.uint64]
    Sketches = NDArray[np.uint16]

SHINGLE = 5
BANDS, BAND_ROWS = 20, 6
SEED = 1
SKETCHED_AT_ONCE = 2048
SLACK = (
    0.12  # 3.3 standard errors of a similarity that 120 minima estimate at 0.8: what estimates lower is not compared
)

_PAD = "\0" * (SHINGLE - 1)
_GOLDEN = 0x9E3779B97F4A7C15


class Twin(NamedTuple):
    """The row that another is nearly the same as, by its place, and their exact Jaccard index."""

    other: int
    similarity: float


class Twins(NamedTuple):
    """By place of the row: its twin of a lower rank (a leak), and its earlier twin of the same rank (a repeat)."""

    leaks: dict[int, Twin]
    repeats: dict[int, Twin]


def shingles(text: str) -> frozenset[str]:
    """The 5-character pieces of a normalised text, the last ones padded, so that no text is without any.

    >>> sorted(shingles("Refund"))
    ['d\\x00\\x00\\x00\\x00', 'efund', 'fund\\x00', 'nd\\x00\\x00\\x00', 'refun', 'und\\x00\\x00']
    """
    padded = normalised(text) + _PAD
    return frozenset(padded[at : at + SHINGLE] for at in range(max(1, len(padded) - SHINGLE + 1)))


def similarity(one: str, other: str) -> float:
    """Jaccard index of two texts: shared shingles over all shingles.

    >>> similarity("where is my card", "Where  is my CARD"), similarity("abc", "xyz")
    (1.0, 0.0)
    """
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def twins(texts: Sequence[str], ranks: Sequence[int], at_least: float, sketch: Sketches | None = None) -> Twins:
    """Rows that nearly repeat another. Rank 0 judges before rank 1, and so on; a row leaks into what judges before it.

    `sketch` is that of the texts, if it is known.
    In a bucket of the index each row is held against the first and the last row of the ranks before it and against the
    row before it in its own, not against all, so the cost stays linear where thousands of rows follow one pattern.
    """
    import numpy as np

    order = np.lexsort((np.arange(len(texts)), np.asarray(ranks)))
    rank = np.asarray(ranks)[order]
    sketch = (sketches(texts) if sketch is None else sketch)[order]
    leaks: dict[int, Twin] = {}
    repeats: dict[int, Twin] = {}
    for found, pairs in ((leaks, _below), (repeats, _beside)):
        refuted = np.empty(0, np.uint64)
        for band in range(BANDS):
            asking, asked = pairs(_band(sketch, band), rank)
            fresh = ~np.isin(asking, np.fromiter(found, np.int64, len(found)))
            names = np.unique(asking[fresh].astype(np.uint64) << np.uint64(32) | asked[fresh].astype(np.uint64))
            names = names[~np.isin(names, refuted)]
            one, other = (names >> np.uint64(32)).astype(np.int64), (names & np.uint64(0xFFFFFFFF)).astype(np.int64)
            likely = _estimates(sketch, one, other) >= at_least - SLACK
            for a, b in zip(one[likely].tolist(), other[likely].tolist(), strict=True):
                if a not in found and (exact := similarity(texts[order[a]], texts[order[b]])) >= at_least:
                    found[a] = Twin(b, exact)
            refuted = np.union1d(refuted, names)
    place = order.tolist()
    named = ({place[a]: Twin(place[b], exact) for a, (b, exact) in part.items()} for part in (leaks, repeats))
    return Twins(*named)


def sketches(texts: Sequence[str], on_progress: Callable[[int, int], None] = lambda done, total: None) -> Sketches:
    """(rows, 120): the low halves of the minima; two of them agree by chance once in 65,536."""
    import numpy as np
    from rensa import RMinHash

    width = BANDS * BAND_ROWS
    found = np.empty((len(texts), width), np.uint16)
    for start in range(0, len(texts), SKETCHED_AT_ONCE):
        part = [normalised(text) for text in texts[start : start + SKETCHED_AT_ONCE]]
        hashes, offsets = _hashed(part)
        minima = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, width, SEED).to_rows()
        found[start : start + len(part)] = np.asarray(minima, np.uint64).astype(np.uint16)
        on_progress(start + len(part), len(texts))
    return found


def _hashed(texts: Sequence[str]) -> tuple[Numbers, Numbers]:
    """A 64-bit hash for each shingle of each text, in one array, and where each text begins and the last ends."""
    import numpy as np

    sizes = np.fromiter((max(1, len(text)) for text in texts), np.uint64, len(texts))
    joined = "".join((text or "\0") + _PAD for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32).astype(np.uint64)
    hashes = codes[: len(codes) - SHINGLE + 1].copy()
    for step in range(1, SHINGLE):
        hashes *= np.uint64(_GOLDEN)
        hashes += codes[step : step + len(hashes)]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(_GOLDEN)
    hashes ^= hashes >> np.uint64(32)
    ends = np.cumsum(sizes + np.uint64(SHINGLE - 1))
    real = np.ones(len(codes), bool)
    for step in range(1, SHINGLE):  # windows that begin in the padding reach into the next text
        real[(ends - np.uint64(step)).astype(np.int64)] = False
    return hashes[real[: len(hashes)]], np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes)])


def _band(sketch: Sketches, band: int) -> Numbers:
    """One hash per row of one band."""
    import numpy as np

    found = np.zeros(len(sketch), np.uint64)
    for column in range(band * BAND_ROWS, (band + 1) * BAND_ROWS):
        found *= np.uint64(_GOLDEN)
        found += sketch[:, column]
    return found ^ (found >> np.uint64(31))


def _buckets(keys: Numbers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows sorted by key and then by place, and for each of them where in that order its bucket begins."""
    import numpy as np

    rows = np.argsort(keys, kind="stable")
    sorted_keys = keys[rows]
    begins = np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]) if len(rows) else np.empty(0, bool)
    return rows, np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))


def _below(keys: Numbers, rank: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row with the first and the last row of lower rank in its bucket, where there is one."""
    import numpy as np

    rows, begin = _buckets(keys)
    places = np.arange(len(rows))
    same = np.zeros(len(rows), bool)
    same[1:] = (begin[1:] == begin[:-1]) & (rank[rows[1:]] == rank[rows[:-1]])
    own = np.maximum.accumulate(np.where(same, 0, places))  # where its rank begins in its bucket
    leaking = own > begin
    asking = rows[leaking]
    return np.concatenate([asking, asking]), np.concatenate([rows[begin[leaking]], rows[own[leaking] - 1]])


def _beside(keys: Numbers, rank: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row with the row before it in its bucket, where that has the same rank."""
    rows, begin = _buckets(keys)
    same = (begin[1:] == begin[:-1]) & (rank[rows[1:]] == rank[rows[:-1]])
    return rows[1:][same], rows[:-1][same]


def _estimates(sketch: Sketches, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of equal minima of each pair, which estimates its Jaccard index."""
    import numpy as np

    found = np.empty(len(one))
    for part in _parts(len(one), 100_000):
        found[part] = (sketch[one[part]] == sketch[other[part]]).mean(axis=1)
    return found


def _parts(count: int, size: int) -> Iterator[slice]:
    yield from (slice(start, start + size) for start in range(0, count, size))
