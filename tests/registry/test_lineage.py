"""From every model one walks to its data, its base and its code; and back down."""

from __future__ import annotations

import json
import random

import networkx
import pytest

from registry.errors import Unknown
from registry.lineage import as_json, mermaid, tree
from registry.records import Parent


@pytest.fixture
def family(workshop):
    """triage:1, routing:1 -> triage:2 (retrained) -> all:1 (merged)."""
    ledger = workshop.ledger
    ledger.register(workshop.draft("triage", 1))
    ledger.register(workshop.draft("routing", 1))
    fresh = workshop.dataset("fresh")
    parents = (
        Parent("dataset", f"dataset:{fresh}"),
        Parent("replay", ledger.version("triage:1").parents[0].ref),
        Parent("previous", "triage:1"),
    )
    ledger.register(workshop.draft("triage", 2, parents=parents))
    ledger.register(workshop.merged("all", ("triage:2", "routing:1")))
    return workshop


def test_a_merged_model_leads_to_every_data_set_the_base_and_the_code(family):
    lineage = family.ledger.lineage("all:1")
    assert set(lineage.versions()) == {"all:1", "triage:1", "triage:2", "routing:1"}
    data = {f"dataset:{dataset.digest}" for dataset in family.ledger.datasets()}
    assert set(lineage.nodes) - set(lineage.versions()) == {*data, f"base:{family.base}", f"code:{family.code}"}
    assert {link.parent for link in lineage.links} <= set(lineage.nodes)


def test_a_data_set_leads_down_to_everything_that_learned_from_it(family):
    first = family.ledger.version("triage:1").parents[0].ref
    assert set(family.ledger.lineage(first, "down").versions()) == {"triage:1", "triage:2", "all:1"}
    assert set(family.ledger.lineage("routing:1", "down").versions()) == {"routing:1", "all:1"}
    assert set(family.ledger.lineage(f"base:{family.base}", "down").versions()) == {
        "triage:1",
        "triage:2",
        "routing:1",
        "all:1",
    }
    assert family.ledger.lineage("all", "down").links == ()


def test_roles_and_order_of_parents_are_kept(family):
    assert [role for role, _ in family.ledger.version("triage:2").parents] == ["dataset", "replay", "previous"]
    assert family.ledger.version("all:1").parents == (Parent("parent", "triage:2"), Parent("parent", "routing:1"))


def test_walks_agree_with_networkx_on_random_histories(sqlite_workshop):
    ledger, chance = sqlite_workshop.ledger, random.Random(3)
    graph = networkx.DiGraph()
    refs: list[str] = []
    for place in range(25):
        parents = tuple(chance.sample(refs, min(len(refs), chance.randrange(3))))
        draft = sqlite_workshop.merged("m", parents, place) if parents else sqlite_workshop.draft("m", place)
        ref = ledger.register(draft).ref
        graph.add_node(ref)
        graph.add_edges_from((parent, ref) for parent in parents)
        refs.append(ref)
    for ref in refs:
        assert set(ledger.lineage(ref, "up").versions()) == {ref, *networkx.ancestors(graph, ref)}
        assert set(ledger.lineage(ref, "down").versions()) == {ref, *networkx.descendants(graph, ref)}


def test_the_tree_draws_every_node_and_expands_none_twice(family):
    lineage = family.ledger.lineage("all:1")
    drawing = tree(lineage)
    for node in lineage.nodes.values():
        assert node.label in drawing
    assert drawing.splitlines()[0] == "all:1 (merged)"
    assert len(drawing.splitlines()) == 1 + len(lineage.links)
    assert "├─ parent: triage:2 (adapter)" in drawing


def test_mermaid_and_json_say_every_link(family):
    lineage = family.ledger.lineage("all:1")
    drawing, plain = mermaid(lineage), json.loads(json.dumps(as_json(lineage)))
    assert drawing.splitlines()[0] == "flowchart LR"
    assert drawing.count("-->|") == len(lineage.links) == len(plain["links"])
    assert [node["ref"] for node in plain["nodes"]] == list(lineage.nodes)


def test_a_label_cannot_break_out_of_its_drawing(workshop):
    from registry.records import BaseRecord

    evil = workshop.ledger.remember_base(
        BaseRecord("e" * 64, '"]; click n0 "javascript:x" <b>', None, "llama", 1)
    ).digest
    workshop.ledger.register(workshop.draft("triage", base=evil))
    drawing = mermaid(workshop.ledger.lineage("triage:1"))
    line = next(line for line in drawing.splitlines() if "javascript" in line)
    assert line.count('"') == 2
    assert "<" not in line


@pytest.mark.parametrize("ref", ["triage:1", "dataset:" + "0" * 64, "nothing"])
def test_what_is_not_there_has_no_lineage(workshop, ref):
    with pytest.raises(Unknown):
        workshop.ledger.lineage(ref, "down")
