from __future__ import annotations

import doctest
import hashlib
import importlib
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from tasks.figures.bars import bars
from tasks.figures.curves import smoothed, training_curve
from tasks.figures.drift import score_over_windows, signals_over_windows
from tasks.figures.forgetting import changes, forgetting_matrix
from tasks.figures.inside import inside
from tasks.figures.merging import parent_overlap, retention
from tasks.figures.scores import ScoreRow, scores
from tasks.figures.style import PALETTE, spread_labels

LONG = "a-task-with-quite-a-long-name"
NAN = math.nan


def full_curve(kind: str) -> bytes:
    steps = range(1, 101)
    loss = [3 / step + 0.2 for step in steps]
    validation = [(step, 3 / step + 0.3) for step in range(20, 101, 20)]
    rates = [2e-4 * (1 - step / 100) for step in steps]
    return training_curve(
        steps, loss, validation=validation, rates=rates, grad_norms=loss, verdict="learns " * 40, name=LONG, kind=kind
    )


def broken_curve(kind: str) -> bytes:
    return training_curve(
        [1, 2, 3, 4], [2.0, NAN, math.inf, 1.0], grad_norms=[1.0, NAN, 1.0, NAN], verdict="diverged", kind=kind
    )


def hopeless_curve(kind: str) -> bytes:
    return training_curve([1, 2], [NAN, NAN], kind=kind)


def one_step(kind: str) -> bytes:
    return training_curve([7], [1.5], validation=[(7, 1.4)], rates=[0.0], kind=kind)


def many_scores(kind: str) -> bytes:
    rows = [
        ScoreRow(task, f"model {m}", 0.1 * m, 0.1 * m - 0.05, 0.1 * m + 0.05) for task in ("a", LONG) for m in range(9)
    ]
    return scores(rows, metric="exact match", title="many", subtitle="more than there are colours", kind=kind)


def crowded_windows(kind: str) -> bytes:
    names = [f"2026-{month:02}-01" for month in range(1, 25)]
    lines = {
        f"{LONG} {n}": [None if place < n else (0.9, 0.88, 0.92) for place in range(24)] for n in range(8)
    }  # eight lines end at one height
    events = {3: "input shift:\nretrained", 23: "fault"}
    return score_over_windows(names, lines, alarm_below=0.85, events=events, title="t", kind=kind)


def no_grades(kind: str) -> bytes:
    return score_over_windows(["w1", "w2"], {"champion": [None, None]}, kind=kind)


def some_signals(kind: str) -> bytes:
    signals = {"vocabulary": [0.001, None, 0.05], LONG: [None, None, None], "flat": [0.0, 0.0, 0.0]}
    moved = {"vocabulary": [False, False, True], LONG: [False] * 3, "flat": [False] * 3}
    return signals_over_windows(
        ["w1", "w2", "w3"], signals, {"vocabulary": 0.003, LONG: 0.1, "flat": 0.1}, moved, kind=kind
    )


def some_retention(kind: str) -> bytes:
    candidates = {"average": {LONG: 0.5, "b": 0.2}, "ties density=0.2 scale=1.5": {LONG: 1.3, "b": -0.1}}
    base, expert = {LONG: 0.1, "b": 0.3}, {LONG: 0.9, "b": 0.3}
    return retention(candidates, base=base, expert=expert, chosen="average", gate=0.5, title=LONG * 5, kind=kind)


def overlap(kind: str) -> bytes:
    table = [[1.0, 0.4, 0.5], [0.4, 1.0, -0.2], [0.5, -0.2, 1.0]]
    return parent_overlap(["a", LONG, "c"], [[abs(v) for v in row] for row in table], table, title="overlap", kind=kind)


def forgetting(kind: str) -> bytes:
    return forgetting_matrix(
        ["v1", LONG], ["s1", LONG, "s3"], [[0.9, None, 0.5], [0.7, 0.4, NAN]], title="f", kind=kind
    )


def some_bars(kind: str) -> bytes:
    return bars({f"{LONG} {n}": n * n for n in range(40)}, title="rows by class", kind=kind)


def some_insides(kind: str) -> bytes:
    spectra = {f"layers.{n}.{LONG}.{name}": [2.0, 1.0, 0.1 * n] for n in range(3) for name in "abcdefgh"}
    spectra |= {"pooler": [0.0], "layers.0.alone": [1.0]}
    return inside(spectra, phi=[[0.5, 1.0], [0.2, 0.4]], other=LONG, title="t", subtitle="s", kind=kind)


FIGURES: list[Callable[[str], bytes]] = [
    full_curve, broken_curve, hopeless_curve, one_step, many_scores, crowded_windows, no_grades, some_signals,
    some_retention, overlap, forgetting, some_bars, some_insides,
]  # fmt: skip
each_figure = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.__name__)


@pytest.mark.parametrize("module", ["curves", "forgetting", "style"])
def test_every_example_in_a_docstring_holds(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"tasks.figures.{module}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


@each_figure
def test_a_figure_is_the_same_bytes_each_time_without_date_or_maker(figure: Callable[[str], bytes]) -> None:
    svg = figure("svg")
    assert svg == figure("svg")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"dc:date" not in svg
    assert b"nan" not in svg.lower()


@each_figure
def test_nothing_reaches_over_the_edge(figure: Callable[[str], bytes]) -> None:
    """Every pixel on the border of the picture is white: no name, number or dot is cut off."""
    pixels = imread(io.BytesIO(figure("png")))[..., :3]
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == 1).all()
    assert (pixels < 0.9).any()


def texts(svg: bytes) -> set[str]:
    """What stands in the figure: matplotlib repeats each text in a comment beside its outlines."""
    return {" ".join(found.split()) for found in re.findall(r"<!-- (.*?) -->", svg.decode(), flags=re.DOTALL)}


def test_the_title_of_a_training_curve_is_its_verdict_and_its_lines_are_named() -> None:
    svg = training_curve([1, 2, 3], [3.0, 2.0, 1.5], validation=[(2, 2.25)], verdict="learns well", name="triage")
    assert {"learns well", "triage", "training", "validation", "best 2.250", "loss", "step"} <= texts(svg)


def test_a_loss_that_is_no_number_is_said_to_be_so() -> None:
    assert "not a number from step 2" in texts(broken_curve("svg"))
    assert "no finite loss" in texts(hopeless_curve("svg"))


def test_retention_is_the_share_of_the_experts_gain_that_was_kept() -> None:
    found = texts(some_retention("svg"))
    assert {"50%", "150%", "-"} <= found  # (0.5 - 0.1) / 0.8, (1.3 - 0.1) / 0.8, and nothing to keep on b


def test_the_forgetting_matrix_says_score_and_change() -> None:
    found = texts(forgetting_matrix(["v1", "v2"], ["s"], [[0.9], [0.7]]))
    assert {"0.900", "0.700", "−0.200", "v1", "v2", "s"} <= found


def test_another_process_with_other_hashes_draws_the_same_bytes() -> None:
    code = (
        "import hashlib, sys; from tasks.figures.merging import parent_overlap as p;"
        "print(hashlib.sha256(p(['a', 'b'], [[0, .5], [.5, 0]], [[1, .1], [.1, 1]], title='t')).hexdigest());"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    here = hashlib.sha256(parent_overlap(["a", "b"], [[0, 0.5], [0.5, 0]], [[1, 0.1], [0.1, 1]], title="t")).hexdigest()
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "3"}
    )
    assert run.stdout.strip() == here


def test_figures_drawn_in_threads_leave_the_settings_and_each_other_alone() -> None:
    before = dict(mpl.rcParams)
    alone = [figure("svg") for figure in FIGURES[6:]]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda figure: figure("svg"), FIGURES[6:]))
    assert together == alone
    assert dict(mpl.rcParams) == before


def test_a_score_that_changes_changes_the_picture() -> None:
    def one(score: float) -> bytes:
        return scores([ScoreRow("t", "m", score, 0.4, 0.9)])

    assert one(0.701) != one(0.702)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9), st.floats(0.1, 20))
@settings(max_examples=200, deadline=None)
def test_labels_are_moved_apart_but_keep_their_order_and_their_middle(heights: list[float], gap: float) -> None:
    placed = spread_labels(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    gaps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert all(distance >= gap - 1e-6 for distance in gaps)
    assert sum(placed) == pytest.approx(sum(heights), abs=1e-6)
    if all(heights[b] - heights[a] >= gap for a, b in pairwise(order)):
        assert placed == pytest.approx(heights)


def test_smoothing_is_a_mean_of_neighbours_and_keeps_a_straight_line() -> None:
    line = [0.5 * step for step in range(200)]
    assert smoothed(line)[10:-10] == pytest.approx(line[10:-10])
    noisy = np.random.default_rng(0).normal(size=400)
    assert np.std(smoothed(noisy.tolist())) < 0.4 * np.std(noisy)
    assert len(smoothed(noisy.tolist())) == 400


def test_the_change_is_against_the_best_of_all_earlier_versions() -> None:
    chance = np.random.default_rng(1)
    table = [[None if chance.random() < 0.2 else float(chance.random()) for _ in range(4)] for _ in range(6)]
    for version, row in enumerate(changes(table)):
        for column, change in enumerate(row):
            earlier = [table[v][column] for v in range(version) if table[v][column] is not None]
            if table[version][column] is None or not earlier:
                assert change is None
            else:
                assert change == pytest.approx(table[version][column] - max(earlier), abs=1e-6)


def test_the_colours_differ_in_lightness_or_hue_for_every_pair() -> None:
    """Machado et al. 2009: the palette as a person without green cones sees it still has no two alike colours."""
    deuteranopia = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    )

    def seen(colour: str) -> np.ndarray:
        light = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
        blind = np.clip(deuteranopia @ linear, 0, 1)
        return np.where(blind <= 0.0031308, 12.92 * blind, 1.055 * blind ** (1 / 2.4) - 0.055)

    views = [seen(colour) for colour in PALETTE]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(views) for b in views[:i]]
    assert min(distances) > 0.15
