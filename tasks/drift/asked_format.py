"""Whether an answer has the format that the spec asks of its targets."""

from __future__ import annotations

import json
import re

from tasks.specs import AdapterSpec


def asks_format(spec: AdapterSpec) -> bool:
    """Whether the spec says anything of the format at all."""
    return spec.data.target_format != "text" or spec.data.target_regex is not None


def has_format(spec: AdapterSpec, answer: str) -> bool:
    """JSON where JSON is asked, and the pattern from its first character on, as the rows themselves are held to it.

    >>> from tasks.specs import AdapterSpec
    >>> data = {"source": "x.jsonl", "prompt": "{a}", "completion": " {b}", "target_format": "json"}
    >>> spec = AdapterSpec.model_validate({"task": "t", "kind": "generation", "base": {"model": "m"}, "data": data})
    >>> has_format(spec, ' {"city": "Rome"}'), has_format(spec, " {city")
    (True, False)
    """
    if spec.data.target_format == "json":
        try:
            json.loads(answer)
        except (ValueError, RecursionError):
            return False
    return spec.data.target_regex is None or re.match(spec.data.target_regex, answer.strip()) is not None
