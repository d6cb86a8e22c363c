"""A talk as one text, which a base without a chat template reads, and back to turns for one that has a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

Turn = dict[str, str]  # role (system, user, assistant) and content
SPEAKERS: Mapping[str, str] = MappingProxyType({"system": "System", "user": "User", "assistant": "Assistant"})

_ROLES = {name: role for role, name in SPEAKERS.items()}
_HEAD = re.compile(rf"(?:^|\n)({'|'.join(_ROLES)}): ")
_ANSWER_ME = "\nAssistant:"


def written(turns: Sequence[Turn]) -> str:
    """A question alone as it stands; more turns with their speakers, ending where the assistant is to speak.

    >>> written([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    'System: Be brief.\\nUser: Hi\\nAssistant:'
    """
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return "\n".join(f"{SPEAKERS[turn['role']]}: {turn['content']}" for turn in turns) + _ANSWER_ME


def turns_of(text: str) -> list[Turn]:
    """The turns of a text that `written` made, up to line ends behind it; any other text is one question.

    >>> turns_of("User: Hi\\nAssistant: Hello\\nUser: Who are you?\\nAssistant:\\n")[2]
    {'role': 'user', 'content': 'Who are you?'}
    >>> turns_of("Hi\\n")
    [{'role': 'user', 'content': 'Hi'}]
    """
    text = text.rstrip("\r\n")
    before, *parts = _HEAD.split(text.removesuffix(_ANSWER_ME))
    turns = [{"role": _ROLES[name], "content": said} for name, said in zip(parts[::2], parts[1::2], strict=True)]
    is_talk = text.endswith(_ANSWER_ME) and not before and takes_turns([turn["role"] for turn in turns])
    return turns if is_talk else [{"role": "user", "content": text}]


def takes_turns(roles: Sequence[str]) -> bool:
    """Whether user and assistant take turns, behind the system's words if any, and the assistant is to speak."""
    talk = list(roles[1:] if roles[:1] == ["system"] else roles)
    return bool(talk) and talk == (["user", "assistant"] * len(talk))[: len(talk)] and talk[-1] == "user"


def without_system(turns: Sequence[Turn]) -> list[Turn]:
    """The system's words before the first question, for a template that knows no system."""
    if turns[0]["role"] != "system":
        return list(turns)
    system, first, *later = turns
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *later]
