from __future__ import annotations

from dataclasses import replace

import numpy as np

from tasks.drift.asking import AMONG, rows_to_label
from tasks.drift.verdict import judge
from tasks.specs import DriftSpec


def points(seed: int, rows: int) -> tuple[np.ndarray, ...]:
    made = np.random.default_rng(seed).standard_normal((rows, 8))
    return tuple(made / np.linalg.norm(made, axis=1, keepdims=True))


def test_rows_to_label_are_doubtful_different_and_not_labelled_yet(desk) -> None:
    window = replace(desk(new_rows=0.3).seen(300, 1, labelled=False), points=points(0, 300))
    window = replace(window, labels=("billing",) * 60 + (None,) * 240)
    chosen = rows_to_label(window, 20)
    assert len(chosen) == len(set(chosen)) == 20
    assert min(chosen) >= 60
    doubtful = sorted(range(60, 300), key=lambda row: window.confidences[row])[: 20 * AMONG]
    assert set(chosen) <= set(doubtful)
    assert chosen[0] == doubtful[0]


def test_each_next_row_is_the_farthest_from_all_that_were_chosen(desk) -> None:
    """The witness goes through all of them, each time."""
    window = replace(desk().seen(200, 2, labelled=False), points=points(3, 200))
    chosen = rows_to_label(window, 12)
    among = sorted(range(200), key=lambda row: window.confidences[row])[: 12 * AMONG]
    for place in range(1, 12):
        gaps = {row: min(1 - float(window.points[row] @ window.points[old]) for old in chosen[:place]) for row in among}
        assert gaps[chosen[place]] >= max(gaps.values()) - 1e-9


def test_one_text_is_asked_for_once_and_nothing_is_asked_of_a_labelled_window(desk) -> None:
    window = desk().seen(90, 3, labelled=False)
    assert len(rows_to_label(replace(window, inputs=("same",) * 90), 20)) == 1
    assert rows_to_label(desk().seen(90, 3), 20) == ()


def test_where_labels_are_asked_for_the_report_says_of_which_rows(desk) -> None:
    report = judge(desk().seen(600, 0), desk(new_rows=0.3).seen(300, 1, labelled=False), DriftSpec(), seed=0)
    assert report.action == "ask for labels"
    assert len(report.to_label) == 20
    assert judge(desk().seen(600, 0), desk().seen(300, 1), DriftSpec(), seed=0).to_label == ()
