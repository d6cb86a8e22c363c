"""What a base's chat template does to a row: the tokens that it adds, and whether an answer ends in one to stop at.

A template is rendered in a sandbox, as transformers does it; nothing else of the base is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.data.admission import Check
from tasks.data.guards import CountTokens
from tasks.data.talks import Turn, turns_of, without_system

_QUESTION, _ANSWER = "question", "answer-to-be-found"


def ending_check(folder: Path) -> Check:
    """A warning where the base has no end token, or where its chat template puts none behind an answer."""
    name, wrong = "an_answer_ends", _wrong(folder)
    return Check(name, "", "warning", not wrong, 1, int(bool(wrong)), (wrong,) if wrong else ())


def _wrong(folder: Path) -> str:
    config = _json(folder / "tokenizer_config.json")
    end = _text(config.get("eos_token"))
    if not end and not any(
        "eos_token_id" in _json(folder / name) for name in ("generation_config.json", "config.json")
    ):
        return "the base names no end token, so the model never learns to stop"
    template = _template(folder, config)
    if template is None:
        return ""
    talk = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        written = _rendered(template, config, talk, False)
    except Exception as error:  # a template is a program, and may fail in any way
        return f"the chat template cannot be rendered: {type(error).__name__}: {str(error)[:100]}"
    _, found, after = written.rpartition(_ANSWER)
    if not found:
        return "the chat template leaves the answer out"
    closing = {end, *_special(folder)} - {""}
    if not any(token in after for token in closing):
        return "the chat template puts no end token behind an answer, so the model is not shown where to stop"
    return ""


def templated(folder: Path, count_tokens: CountTokens) -> CountTokens:
    """A counter that also counts what the base's chat template, if it has one, puts around the turns of a text.

    What it puts around a question is the same for every question; a longer talk is written out and counted.
    """
    config = _json(folder / "tokenizer_config.json")
    template = _template(folder, config)
    if template is None:
        return count_tokens
    try:
        rendered = _rendered(template, config, [{"role": "user", "content": _QUESTION}], True)
    except Exception:  # `ending_check` says what is wrong with it
        return count_tokens
    whole, plain = count_tokens([rendered, _QUESTION])
    around = max(0, whole - plain)

    def count(texts: Sequence[str]) -> list[int]:
        talks = {at: turns for at, text in enumerate(texts) if len(turns := turns_of(text)) > 1}
        said = [_talk(template, config, talks[at]) if at in talks else text for at, text in enumerate(texts)]
        return [tokens + around * (at not in talks) for at, tokens in enumerate(count_tokens(said))]

    return count


def _talk(template: str, config: dict[str, Any], turns: list[Turn]) -> str:
    try:
        return _rendered(template, config, turns, True)
    except Exception:  # some templates refuse a system's turn
        return _rendered(template, config, without_system(turns), True)


def _rendered(template: str, config: dict[str, Any], talk: list[dict[str, str]], ask: bool) -> str:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: "2026-01-01"
    tokens = {name: _text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return environment.from_string(template).render(messages=talk, add_generation_prompt=ask, tools=None, **tokens)


def _raise(message: str) -> None:
    raise ValueError(message)


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template of a tokenizer: a file of its own, or in its configuration, named `default` among several."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text("utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {part.get("name"): part.get("template") for part in given if isinstance(part, dict)}
        given = named.get("default")
    return given if isinstance(given, str) else None


def _special(folder: Path) -> set[str]:
    """Special tokens of tokenizer.json, among which a template may have an end of turn of its own."""
    added = _json(folder / "tokenizer.json").get("added_tokens") or ()
    return {str(token.get("content", "")) for token in added if isinstance(token, dict) and token.get("special")}


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else token if isinstance(token, str) else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
