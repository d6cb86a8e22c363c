"""What is judged: rows that are always the same, each input once."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flows.learn import slice_of
from tasks.data.examples import Example, key_of
from tasks.specs import AdapterSpec


@dataclass(frozen=True)
class Rows:
    """A snapshot of one side."""

    rows: tuple[Example, ...]

    def examples(self, side: str) -> tuple[Example, ...]:
        assert side == "test"
        return self.rows


def spec_of(max_rows: int) -> AdapterSpec:
    tree: dict[str, Any] = {
        "task": "talk",
        "kind": "generation",
        "base": {"model": "../base"},
        "data": {"source": "talk.jsonl", "prompt": "{ask}", "completion": "{say}"},
        "evaluation": {"max_rows": max_rows},
    }
    return AdapterSpec.model_validate(tree)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), unique=True),
    st.integers(1, 8),
    st.randoms(),
)
def test_an_input_with_several_right_answers_is_judged_once_whatever_the_order_of_the_rows(
    pairs: list[tuple[str, str]], max_rows: int, shuffled: Any
) -> None:
    def judged() -> list[tuple[str, str]]:
        rows = tuple(Example(key_of(ask), ask, say, row) for row, (ask, say) in enumerate(pairs))
        data: Any = SimpleNamespace(snapshot=Rows(rows), digest="0" * 64)
        return [(e.input, e.target) for e in slice_of(spec_of(max_rows), data).examples]

    found = judged()
    first = {ask: min(say for other, say in pairs if other == ask) for ask, _ in pairs}
    assert found == [(ask, first[ask]) for ask in sorted(first, key=key_of)][:max_rows]
    shuffled.shuffle(pairs)
    assert judged() == found
