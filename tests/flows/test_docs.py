"""What help and documentation promise: every command that they show exists with these words, every path is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command

from flows.cli import app

ROOT = next(path for path in Path(__file__).parents if (path / "pyproject.toml").is_file())
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
GROUP: Any = get_command(app)


def parsed(line: str) -> str:
    """The command that a line of documentation calls, after its words were parsed as the command line would.

    Square brackets mark what may be left out; what follows a > goes to a file.
    """
    words = [word.strip("[]").removesuffix("...") for word in shlex.split(line.split(" > ")[0], comments=True)]
    words = [word for word in words[1:] if word not in ("--json", "--quiet", "--debug")]
    with GROUP.make_context("factory", list(words)) as context:
        if not words or words == ["--help"]:
            return "factory"
        name, command, rest = GROUP.resolve_command(context, list(words))
        with command.make_context(name, rest, parent=context):
            return str(name)


def shown(page: Path) -> list[str]:
    """Every call of the factory in code spans and code blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    calls = [line.strip() for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", outside)
    calls = [re.sub(r"^(\$ )?(\.venv/bin/)?(?=factory( |$))", "", call) for call in calls]
    return [call for call in calls if call.split(" ")[0] == "factory"]


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_the_help_of_every_command_shows_an_example_that_parses(name: str) -> None:
    examples = re.findall(r"Example: `([^`]+)`", GROUP.commands[name].help)
    assert examples
    assert {parsed(example) for example in examples} == {name}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_in_the_documentation_is_one(page: Path) -> None:
    for call in shown(page):
        parsed(call)


def test_every_command_is_in_the_readme() -> None:
    named = {parsed(call) for call in shown(ROOT / "README.md")}
    assert set(GROUP.commands) - named <= {"demo"}  # it stands there as `make demo`


def test_an_option_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed("factory train SPEC --with-magic")
    with pytest.raises(Exception, match="No such command"):
        parsed("factory conjure")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_in_the_documentation_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (page.parent / link).exists()]
    for span in re.findall(r"`([^`\n]+)`", text) + re.findall(r"^\S*python (\S+\.py)", text, re.MULTILINE):
        for word in span.split():
            first = word.split("/")[0]
            if "/" in word and "<" not in word and first in TRACKED and not list(ROOT.glob(word.rstrip("/"))):
                missing.append(word)
    assert missing == []


TRACKED = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}


def test_the_tree_in_the_readme_is_the_tree() -> None:
    (block,) = re.findall(r"^## The tree\n+```\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    folder, named = ROOT, []
    for line in block.splitlines():
        head = re.match(r"(\s*)(\S+)", line)
        assert head is not None
        if not head[1]:
            folder = ROOT / head[2] if head[2].endswith("/") else ROOT
        names = re.findall(r"(?<![\w/])[\w./-]+(?:\.py|\.yaml|\.md|/)(?![\w/])", line)
        named += [(folder if head[1] else ROOT) / name for name in names[: None if head[1] else 1]]
    assert len(named) > 20
    assert [str(path.relative_to(ROOT)) for path in named if not path.exists()] == []


def test_the_spec_in_the_readme_is_one(tmp_path: Path) -> None:
    from tasks.spec_files import load_adapter_spec

    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "intent.yaml"
    path.write_text(block)
    assert load_adapter_spec(path).task == YAML(typ="safe").load(block)["task"]


def test_the_exit_codes_in_the_readme_are_those_of_the_errors() -> None:
    import registry.errors
    import tasks.errors

    text = " ".join((ROOT / "README.md").read_text().split())
    (sentence,) = re.findall(r"Exit codes: ([^.]+)\.", text)
    codes = {int(code) for code in re.findall(r"\b(\d+) ", sentence)}
    kinds = [*vars(tasks.errors).values(), *vars(registry.errors).values()]
    assert codes == {0} | {kind.exit_code for kind in kinds if isinstance(kind, type) and hasattr(kind, "exit_code")}
