from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.door import admit
from tasks.data.layouts import chat
from tasks.data.talks import turns_of
from tasks.errors import DataRefused
from tasks.specs import SIDES, AdapterSpec, BaseSpec, DataSpec


def spec_of(path, **data):
    base = BaseSpec(model="/base")
    return AdapterSpec(task="talk", kind="generation", base=base, data=DataSpec(source=str(path), **data))


def said(role, content):
    return {"role": role, "content": content}


def pairs(admission):
    return {(e.input, e.target) for side in SIDES for e in admission.examples[side]}


def test_a_chat_becomes_its_question_and_its_answer(tmp_path, write):
    rows = [{"messages": [said("user", f"question {at}"), said("assistant", f"answer {at}")]} for at in range(60)]
    admission = admit(spec_of(write(tmp_path / "a.jsonl", rows), layout="messages"))
    assert pairs(admission) == {(f"question {at}\n", f"answer {at}") for at in range(60)}


def test_a_longer_chat_keeps_the_system_and_every_turn_in_order():
    turns = [said("system", "S"), said("user", "A"), said("assistant", "B"), said("user", "C"), said("assistant", "D")]
    assert chat({"messages": turns}) == ("System: S\nUser: A\nAssistant: B\nUser: C\nAssistant:", "D")


TURNS = st.lists(st.text(max_size=20).map(lambda text: text.rstrip("\r\n")), min_size=1, max_size=7)


@given(st.text(max_size=9).map(lambda text: text.rstrip("\r\n")) | st.none(), TURNS)
def test_the_turns_of_a_chat_can_be_read_back_from_its_prompt(system, contents):
    roles = itertools.cycle(["user", "assistant"])
    turns = [said(role, text) for role, text in zip(roles, contents, strict=False)]
    turns = [*([said("system", system)] if system is not None else []), *turns[: len(turns) - (len(turns) % 2 == 0)]]
    prompt, answer = chat({"messages": [*turns, said("assistant", "done")]})
    assert (turns_of(prompt), turns_of(prompt + "\n"), answer) == (turns, turns, "done")


BROKEN = {
    "no list": ("hello", "text where a list"),
    "the user has the last word": ([said("user", "a"), said("assistant", "b"), said("user", "c")], "take turns"),
    "two users": ([said("user", "a"), said("user", "b")], "take turns"),
    "unknown speaker": ([said("tool", "a"), said("assistant", "b")], "role 'tool'"),
    "no text": ([said("user", ["a"]), said("assistant", "b")], "turn 1: list"),
    "system too late": ([said("user", "a"), said("system", "b")], "turn 2: role 'system'"),
    "nothing": ([], "found nothing"),
    "two in one": (
        [said("user", "a\nAssistant: b\nUser: c"), *(said(who, "d") for who in ("assistant", "user", "assistant"))],
        "begins like another turn",
    ),
}


def test_what_is_no_chat_is_quarantined_with_its_row_and_turn(tmp_path, write):
    rows = [{"messages": [said("user", f"question {at}"), said("assistant", f"answer {at}")]} for at in range(60)]
    path = tmp_path / "a.jsonl"
    bad = [{"messages": turns} for turns, _ in BROKEN.values()]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *bad]))
    admission = admit(spec_of(path, layout="messages", max_quarantined=0.2))
    assert [(q.row, q.guard, q.field) for q in admission.quarantined] == [
        (row, "row_has_its_layout", "messages") for row in range(61, 61 + len(BROKEN))
    ]
    for found, (_, words) in zip(admission.quarantined, BROKEN.values(), strict=True):
        assert words in found.reason


def test_an_instruction_may_have_an_input_or_none(tmp_path, write):
    rows = [{"instruction": f"do {at}", "input": "", "output": f"done {at}"} for at in range(60)]
    rows[7]["input"] = "with this"
    rows[8]["input"] = None
    admission = admit(spec_of(write(tmp_path / "a.jsonl", rows), layout="instruction"))
    found = pairs(admission)
    assert ("do 7\n\nwith this\n", "done 7") in found
    assert ("do 8\n", "done 8") in found
    assert len(found) == 60


def test_a_layout_names_the_column_that_is_missing_or_taken(tmp_path, write):
    rows = [{"messages": [], "prompt": "x"}] * 3
    with pytest.raises(DataRefused, match="E-DATA-023"):
        admit(spec_of(write(tmp_path / "a.jsonl", rows), layout="messages"))
    with pytest.raises(DataRefused, match="'instruction', 'output' missing; found 'text'"):
        admit(spec_of(write(tmp_path / "b.jsonl", [{"text": "x"}] * 3), layout="instruction"))
