"""Specs from YAML 1.2 files: strict, with the line of every fault and the nearest valid key.

Aliases and anchors are refused (a few hundred bytes of them expand without end), so are duplicate keys (the last would
silently win), custom tags and files over 256 KiB.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from tasks.errors import Problem, SpecRefused, raise_if_any
from tasks.specs import AUTO, LEFT_TO_THE_RECIPE, AdapterSpec, MergeSpec, Spec

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".feather")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
S = TypeVar("S", bound=Spec)


def load_adapter_spec(path: str | Path) -> AdapterSpec:
    """The adapter spec in a file; `base.model` and `data.source` become absolute when they name something local.

    Raises:
        SpecRefused: with one problem per fault, each with its line.
    """
    path = Path(path)
    tree = _tree(path)
    for section, key in (("base", "model"), ("data", "source")):
        block = tree.get(section)
        if isinstance(block, CommentedMap) and isinstance(block.get(key), str):
            block[key] = _located(block, section, key, path)
    _join_suite(tree, path)
    spec = _checked(AdapterSpec, tree, path)
    raise_if_any(SpecRefused, _pin_problems(spec, tree, path))
    return spec


def load_merge_spec(path: str | Path) -> MergeSpec:
    """The merge recipe in a file.

    Raises:
        SpecRefused: with one problem per fault, each with its line.
    """
    path = Path(path)
    tree = _tree(path)
    general = tree.get("general")
    if isinstance(general, CommentedMap) and isinstance(general.get("source"), str):
        general["source"] = _located(general, "general", "source", path)
    return _checked(MergeSpec, tree, path)


def is_merge_recipe(path: str | Path) -> bool:
    """Whether a spec file is a merge recipe: it names parents."""
    return "parents" in _tree(Path(path))


def _tree(path: Path) -> CommentedMap:
    text = _text(path)
    try:
        _refuse_expansion(text, path)
        tree = YAML(typ="rt", pure=True).load(text)
    except SpecRefused:
        raise
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        key = re.search(r'duplicate key "([^"]*)"', str(error))
        raise SpecRefused.one(
            "E-SPEC-003", f"{path}:{line}", f"key '{key[1] if key else '?'}' is given twice", "keep one of them"
        ) from None
    except (YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        wrong = getattr(error, "problem", None) or getattr(error, "reason", None) or "a value is out of reach"
        raise SpecRefused.one(
            "E-SPEC-002", f"{path}:{line}", f"cannot be read as YAML: {wrong}", "mend the syntax"
        ) from None
    if not isinstance(tree, CommentedMap):
        raise SpecRefused.one("E-SPEC-002", path, "holds no mapping of keys to values", "start with 'task: name'")
    return tree


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device can be read without end
            raise SpecRefused.one("E-SPEC-001", path, "is not a regular file", "name a readable spec file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SpecRefused.one(
                "E-SPEC-001", path, f"is larger than {MAX_BYTES // 1024} KiB", "a spec is a page of text"
            )
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecRefused.one(
            "E-SPEC-001", path, f"byte {error.start} is not UTF-8", "save the file as UTF-8"
        ) from None
    except SpecRefused:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise SpecRefused.one("E-SPEC-001", path, reason.lower(), "name a readable spec file") from None


def _refuse_expansion(text: str, path: Path) -> None:
    """Walk the events before anything is built, and stop at the first that could expand or nest without end."""
    depth = 0
    for event in YAML(typ="rt", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent)
        depth -= isinstance(event, CollectionEndEvent)
        what = (
            "alias"
            if isinstance(event, AliasEvent)
            else "anchor"
            if getattr(event, "anchor", None)
            else "tag"
            if getattr(event, "tag", None)
            else f"nesting deeper than {MAX_DEPTH}"
            if depth > MAX_DEPTH
            else None
        )
        if what:
            place = f"{path}:{event.start_mark.line + 1}"
            raise SpecRefused.one("E-SPEC-004", place, f"holds a YAML {what}", "write plain values; a spec is shallow")


def _located(block: CommentedMap, section: str, key: str, path: Path) -> str:
    """A local name as an absolute path, a hub id as it is; ${NAME} comes from the environment."""
    place = f"{path}:{_line(block, key)}:{section}.{key}"

    def variable(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise SpecRefused.one("E-SPEC-007", place, f"${{{name}}} is not set", f"export {name}=...")
        return os.environ[name]

    value = VARIABLE.sub(variable, block[key])
    if section == "data" and block.get("query") and "\0" not in value:
        return _database(value, place, path)
    if "://" in value or "\0" in value:  # the value is not repeated: URLs carry passwords
        remedy = "name a path, or a hub id with a pinned revision"
        raise SpecRefused.one("E-SPEC-008", place, "a URL is not taken" if "://" in value else "holds a NUL", remedy)
    local = path.parent / os.path.expanduser(value)
    is_hub_id = HUB_ID.match(value) and not value.endswith(DATA_SUFFIXES) and not local.exists()
    return value if is_hub_id else os.path.abspath(local)


def _database(value: str, place: str, path: Path) -> str:
    """An SQLAlchemy URL; the path of an SQLite file becomes absolute. A password would be kept with every version."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        remedy = "write one such as sqlite:///orders.db or postgresql+psycopg://reader@host/shop"
        raise SpecRefused.one("E-SPEC-038", place, "query needs an SQLAlchemy URL as its source", remedy) from None
    if url.password is not None:
        remedy = "leave it to the driver: PGPASSWORD, ~/.pgpass, ~/.my.cnf"
        raise SpecRefused.one("E-SPEC-038", place, "the URL holds a password", remedy)
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        url = url.set(database=os.path.abspath(path.parent / os.path.expanduser(url.database)))
    return url.render_as_string(hide_password=False)


def _join_suite(tree: CommentedMap, path: Path) -> None:
    """The rules of `data.suite` become the last of `data.expectations`, so that the spec holds all that is asked."""
    data = tree.get("data")
    if not isinstance(data, CommentedMap) or not isinstance(data.get("suite"), str):
        return
    from tasks.data.suites import rules_in

    place = f"{path}:{_line(data, 'suite')}:data.suite"
    file = path.parent / os.path.expanduser(data["suite"])
    data["expectations"] = [*(data.get("expectations") or ()), *rules_in(_text(file), place)]
    data["suite"] = None


def _pin_problems(spec: AdapterSpec, tree: CommentedMap, path: Path) -> list[Problem]:
    """A hub id needs the hash of a commit: a branch moves, and what moved cannot be traced."""
    found = []
    for section, key, name, revision in (
        ("base", "model", spec.base.model, spec.base.revision),
        ("data", "source", spec.data.source, spec.data.revision),
    ):
        place = f"{path}:{_line(tree[section], key)}:{section}.{key}"
        if Path(name).is_absolute() and revision:
            found.append(Problem("E-SPEC-008", place, "a local path has no revision", "remove it; content is hashed"))
        elif not Path(name).is_absolute() and not revision and not (section == "data" and spec.data.query):
            wrong = f"hub id '{name}' has no revision (and no such local path exists)"
            found.append(
                Problem("E-SPEC-008", place, wrong, "pin revision: to the 40 hex digits of a commit, or mend the path")
            )
    return found


def _checked(model: type[S], tree: CommentedMap, path: Path) -> S:
    try:  # strict, and as JSON: 'true' or "16" is no rank, while a list is a tuple and 3 is a fraction
        plain = _left_to_the_recipe(_plain(tree)) if model is AdapterSpec else _plain(tree)
        return model.model_validate_json(json.dumps(plain, default=str), strict=True)
    except ValidationError as error:
        raise SpecRefused(*(_problem(model, tree, path, dict(found)) for found in error.errors())) from None


def _left_to_the_recipe(tree: dict[str, Any]) -> dict[str, Any]:
    """`method: {rank: auto}` becomes the default, with a note that the recipe is to choose it."""
    found = []
    for path in LEFT_TO_THE_RECIPE:
        section, field = path.split(".")
        block = tree.get(section)
        if isinstance(block, dict) and block.get(field) == AUTO:
            tree = {**tree, section: {name: value for name, value in block.items() if name != field}}
            found.append(path)
    return {**tree, "auto": found} if found and "auto" not in tree else tree


def _problem(model: type[Spec], tree: CommentedMap, path: Path, error: dict[str, Any]) -> Problem:
    where = error["loc"]
    dotted = ".".join(str(part) for part in where)
    place = f"{path}:{_line_of(tree, where)}" + (f":{dotted}" if dotted else "")
    if error["type"] == "extra_forbidden":
        valid = _keys_at(model, where[:-1])
        near = difflib.get_close_matches(str(where[-1]), valid, n=1, cutoff=0.5)
        remedy = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(valid)}"
        return Problem("E-SPEC-005", place, f"unknown key '{where[-1]}'", remedy)
    if error["type"] == "missing":
        return Problem("E-SPEC-006", place, f"required key '{where[-1]}' is missing", f"add '{where[-1]}:'")
    found = error.get("input")
    shown = f", found {found!r}"[:80] if not isinstance(found, dict | list | CommentedMap) else ""
    message = error["msg"].removeprefix("Value error, ").removesuffix(" after validation, not 0")
    message = message.replace("Tuple", "A list").replace("valid array", "list")
    message = message[:1].lower() + message[1:]
    if error["type"] == "string_pattern_mismatch" and where and where[-1] in ("task", "name"):
        message = "a name is lower-case letters, digits and dashes, 1 to 63 of them"
    return Problem("E-SPEC-006", place, f"{message}{shown}", "see `factory schema` for what each key takes")


def _keys_at(model: type[BaseModel], where: Sequence[str | int]) -> list[str]:
    current: type[BaseModel] | None = model
    for part in where:
        if current is None or isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        current = _model_in(field.annotation) if field else None
    return sorted(current.model_fields) if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _line_of(tree: Any, where: Sequence[str | int]) -> int:
    line = 1
    for part in where:
        if not isinstance(tree, CommentedMap | CommentedSeq):
            break
        line = _line(tree, part) or line
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            break
    return line


def _line(block: CommentedMap | CommentedSeq, key: str | int) -> int:
    try:
        return int(block.lc.key(key)[0] if isinstance(block, CommentedMap) else block.lc.item(key)[0]) + 1
    except (KeyError, IndexError, TypeError, AttributeError):
        return 0


def _plain(value: Any) -> Any:
    """Ruamel's annotated containers and scalars as plain Python values."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value
