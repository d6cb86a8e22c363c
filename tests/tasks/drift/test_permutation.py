from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tasks.drift.permutation import (
    bag_mmd,
    near_pairs,
    new_terms,
    pair_disagreement,
    permuted,
    row_weights,
    term_divergence,
)
from tasks.drift.terms import bags_of


def random_rows(seed: int, rows: int, words: str = "abcdefghij") -> list[list[str]]:
    chance = np.random.default_rng(seed)
    return [list(chance.choice(list(words), int(chance.integers(2, 7)))) for _ in range(rows)]


def test_the_p_value_is_the_share_of_all_divisions_that_reach_the_observed_one() -> None:
    height = np.array([3.0, 1, 4, 1, 5, 9, 2, 6])
    inside = np.array([False, False, False, False, True, True, True, True])
    sums = [height[list(chosen)].sum() for chosen in combinations(range(8), 4)]
    exact = np.mean(np.array(sums) >= height[inside].sum())
    found = permuted(lambda masks: masks @ height, inside, np.random.default_rng(0), most=20_000, enough=10**9)
    assert found.p == pytest.approx(exact, abs=0.01)


def test_stopping_early_keeps_the_p_value_honest() -> None:
    """Under "nothing moved" a p-value is at most u with a probability of at most u."""
    p_values = []
    for seed in range(400):
        chance = np.random.default_rng(seed)
        height, inside = chance.normal(size=40), np.arange(40) >= 25
        p_values.append(permuted(lambda masks, h=height: masks @ h, inside, chance, most=299, enough=5).p)
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(np.array(p_values) <= level) <= level + 3 * (level * (1 - level) / 400) ** 0.5


def test_a_quiet_test_stops_after_few_draws_and_a_loud_one_deals_them_all() -> None:
    drawn: list[int] = []
    height = np.arange(60.0)

    def total(masks: np.ndarray) -> np.ndarray:
        drawn.append(len(masks))
        return masks @ height

    permuted(total, height % 2 == 0, np.random.default_rng(0), most=5000)
    quiet = sum(drawn)
    drawn.clear()
    permuted(total, height >= 40, np.random.default_rng(0), most=5000)
    assert (quiet < 500, sum(drawn)) == (True, 5001)


def test_weights_of_each_side_sum_to_one_and_strata_give_the_reference_the_windows_mix() -> None:
    strata = np.array([0, 0, 0, 1, 1, 0, 1, 1])
    masks = np.array([[False] * 5 + [True] * 3])
    window, reference = row_weights(masks, strata)
    assert window.sum() == pytest.approx(1)
    assert [reference[0, strata == s].sum() for s in (0, 1)] == pytest.approx([1 / 3, 2 / 3])


def test_term_divergence_is_scipys_on_the_mean_shares_of_the_words() -> None:
    rows, inside = random_rows(0, 40) + random_rows(1, 20, "abcdefbcd"), np.arange(60) >= 40
    shares = np.array([[row.count(word) / len(row) for word in "abcdefghij"] for row in rows])
    witness = jensenshannon(shares[inside].mean(0), shares[~inside].mean(0), base=2) ** 2
    chance = np.random.default_rng(1)
    dealt = [chance.permutation(inside) for _ in range(3000)]
    by_chance = np.mean([jensenshannon(shares[d].mean(0), shares[~d].mean(0), base=2) ** 2 for d in dealt])
    found = term_divergence(bags_of(rows)[0], inside, np.random.default_rng(2), most=3000)
    assert found.value == pytest.approx(witness - by_chance, abs=0.002)


def test_mmd_is_the_difference_of_the_mean_cosines_within_and_across() -> None:
    rows, inside = random_rows(3, 30) + random_rows(4, 20, "abcdefbcd"), np.arange(50) >= 30
    words = sorted({word for row in rows for word in row})
    idf = {word: np.log(51 / (1 + sum(word in row for row in rows))) for word in words}
    vectors = np.array([[idf[word] * (word in row) for word in words] for row in rows])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def squared(marks: np.ndarray) -> float:
        kernel = vectors @ vectors.T
        blocks = [kernel[np.ix_(a, b)].mean() for a, b in ((marks, marks), (~marks, ~marks), (marks, ~marks))]
        return blocks[0] + blocks[1] - 2 * blocks[2]

    chance = np.random.default_rng(4)
    by_chance = np.mean([squared(chance.permutation(inside)) for _ in range(2000)])
    found = bag_mmd(bags_of(rows)[0], inside, np.random.default_rng(5), most=2000)
    assert found.value == pytest.approx(squared(inside) - by_chance, abs=0.002)


def test_new_terms_counts_the_rows_with_a_word_that_the_others_lack() -> None:
    rows = [["a", "b"], ["b", "c"], ["a", "z"], ["a", "b"], ["q", "z"]]
    seen = []

    class Still:
        def permuted(self, masks: np.ndarray, axis: int) -> np.ndarray:
            seen.append(masks.copy())
            return np.tile([True, True, False, False, False], (len(masks), 1))

    found = new_terms(bags_of(rows)[0], np.array([False, False, True, True, True]), Still(), most=3)
    in_place, dealt = 2 / 3, 1 / 2  # rows 2 and 4 hold z or q; dealt the other way, row 1 holds c
    assert found.value == pytest.approx(in_place - dealt)


@pytest.mark.parametrize("measure", [term_divergence, bag_mmd])
def test_a_moved_mix_of_strata_alone_is_no_difference_within_them(measure) -> None:
    chance = np.random.default_rng(6)
    strata = np.array([0] * 150 + [1] * 50 + [0] * 30 + [1] * 70)
    inside = np.arange(300) >= 200
    rows = [list(chance.choice(list("abcde" if stratum == 0 else "vwxyz"), 4)) for stratum in strata]
    bags = bags_of(rows)[0]
    assert measure(bags, inside, np.random.default_rng(0), most=499).p <= 0.01
    assert measure(bags, inside, np.random.default_rng(0), most=499, strata=strata).p > 0.05
    moved = [
        list(chance.choice(list("abcqr"), 4)) if new and not s else row
        for row, new, s in zip(rows, inside, strata, strict=True)
    ]
    assert measure(bags_of(moved)[0], inside, np.random.default_rng(0), most=499, strata=strata).p <= 0.01


def test_near_pairs_are_those_of_a_loop_over_all_pairs() -> None:
    rows = random_rows(8, 40, "abcdefghijklmnopqrst")
    words = sorted({word for row in rows for word in row})
    idf = {word: np.log(41 / (1 + sum(word in row for row in rows))) for word in words}
    vectors = np.array([[idf[word] * (word in row) for word in words] for row in rows])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = {(i, j) for i, j in combinations(range(40), 2) if vectors[i] @ vectors[j] >= 0.5}
    pairs, cosine = near_pairs(bags_of(rows)[0], least=0.5, neighbours=39, block=7)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert cosine == pytest.approx([vectors[i] @ vectors[j] for i, j in pairs])


def test_labels_that_are_only_noisier_for_far_pairs_do_not_count_as_relabelled() -> None:
    """The new rows lie further from the old ones, and far pairs disagree more: on both sides alike."""
    chance = np.random.default_rng(9)
    pairs = np.array(list(combinations(range(80), 2)))
    inside = np.arange(80) >= 50
    across = inside[pairs[:, 0]] ^ inside[pairs[:, 1]]
    cosine = np.where(chance.random(len(pairs)) < np.where(across, 0.8, 0.2), 0.55, 0.9)
    labels = [str(label) for label in chance.integers(0, 3, 80)]
    found = pair_disagreement(pairs, cosine, labels, inside, np.random.default_rng(0), most=499)
    assert abs(found.value) < 0.05
