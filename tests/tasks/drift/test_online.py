from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from tasks.drift.online import DETECTORS, PAGE_HINKLEY_LIMIT, SLACK, WARM_UP, Detector

NAMES = sorted(DETECTORS)


def stream(seed: int, *parts: tuple[float, int]) -> list[float]:
    chance = np.random.default_rng(seed)
    return [float(value) for share, rows in parts for value in (chance.random(rows) < share)]


@pytest.mark.parametrize("name", NAMES)
def test_a_fall_is_seen_soon_after_it_happens(name: str) -> None:
    """Of 20 points; of 50 by KSWIN, which compares 50 rows with 50 and sees no less where rows are right or wrong."""
    delays, low, rows = [], *((0.43, 300) if name == "kswin" else (0.73, 600))
    for seed in range(3 if name == "kswin" else 10):
        found = Detector.named(name, usual=0.93).after(stream(seed, (0.93, rows), (low, rows)))
        assert found.alarm_at is not None
        delays.append(found.alarm_at - rows)
    assert sum(delay >= 0 for delay in delays) >= len(delays) - 1
    assert np.median(delays) <= 200


@pytest.mark.parametrize("name", NAMES)
def test_a_quiet_stream_of_a_thousand_rows_hardly_ever_rings(name: str) -> None:
    rang = sum(
        Detector.named(name, usual=0.93).after(stream(seed, (0.93, 1000))).alarm_at is not None for seed in range(20)
    )
    assert rang <= 2


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_cut_anywhere_and_stored_in_between_gives_the_same_detector(name: str) -> None:
    rows = stream(3, (0.9, 500), (0.6, 300))
    whole = Detector.named(name, usual=0.9).after(rows)
    parts = Detector.named(name, usual=0.9)
    for start in range(0, len(rows), 97):
        plain = json.loads(json.dumps(asdict(parts.after(rows[start : start + 97]))))
        parts = Detector(**{**plain, "state": tuple(plain["state"])})
    assert (parts.alarm_at, parts.seen) == (whole.alarm_at, whole.seen)


def test_page_hinkley_is_river_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from river.drift import PageHinkley

    for seed in range(6):
        rows = stream(seed, (0.9, 300), (0.5, 300))
        river, rang = PageHinkley(WARM_UP, SLACK, PAGE_HINKLEY_LIMIT, alpha=1.0, mode="down"), None
        for place, value in enumerate(rows):
            river.update(value)
            if river.drift_detected:
                rang = place
                break
        ours = Detector.named("page_hinkley", usual=0.9).after(rows).alarm_at
        assert ours is not None
        assert rang is not None
        assert abs(ours - rang) <= 2


def test_an_alarm_stays_where_it_rang() -> None:
    found = Detector.named("cusum", usual=0.95).after([0.0] * 40)
    assert found.alarm_at is not None
    assert found.after([1.0] * 500).alarm_at == found.alarm_at
