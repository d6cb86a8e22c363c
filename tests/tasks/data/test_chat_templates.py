from __future__ import annotations

import json
import shutil

import pytest

from tasks.data.chat_templates import ending_check, templated
from tasks.data.talks import written
from tasks.training.folder import count_tokens

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def base(tmp_path, tiny_base):
    return shutil.copytree(tiny_base, tmp_path / "base")


def with_template(base, template, **more):
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template} | more))
    return base


def test_a_base_with_an_end_token_and_without_a_template_can_stop(base):
    assert ending_check(base).passed


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (CHATML, None),
        (CHATML.replace("{{ eos_token }}", ""), "no end token behind an answer"),
        ("{% for m in messages %}{{ m.role }}{{ eos_token }}{% endfor %}", "leaves the answer out"),
        ("{{ messages[7].content }", "cannot be rendered"),
        ("{{ raise_exception('not for me') }}", "not for me"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be rendered: SecurityError"),
    ],
)
def test_a_chat_template_without_an_end_behind_the_answer_is_told(base, template, words):
    check = ending_check(with_template(base, template))
    assert (check.severity, check.passed) == ("warning", words is None)
    assert words is None or words in check.samples[0]


def test_a_base_without_an_end_token_is_told(base):
    with_template(base, None, eos_token=None)
    for name in ("config.json", "generation_config.json"):
        path = base / name
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token_id"}))
    assert "names no end token" in ending_check(base).samples[0]


def test_the_tokens_of_a_template_are_those_that_transformers_puts_around_a_prompt(base):
    from transformers import AutoTokenizer

    from tasks.training.encoding import prompt_tokens

    with_template(base, CHATML)
    tokenizer = AutoTokenizer.from_pretrained(base)
    count = templated(base, count_tokens(base))
    talk = written([{"role": r, "content": "where is it"} for r in ("system", "user", "assistant", "user")])
    for prompt in ("where is my card", "a", "vobipo vinire fifaripu", talk, talk + "\n"):
        counted, real = count([prompt])[0], len(prompt_tokens(tokenizer, [prompt])[0])
        assert real <= counted <= real + 2  # what the tokenizer puts around a plain text is counted once more


def test_a_template_that_knows_no_system_is_given_its_words_with_the_question(base):
    from transformers import AutoTokenizer

    from tasks.training.encoding import prompt_tokens

    with_template(base, "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHATML)
    tokenizer = AutoTokenizer.from_pretrained(base)
    talk = written([{"role": "system", "content": "be short"}, {"role": "user", "content": "where is it"}])
    (row,) = prompt_tokens(tokenizer, [talk])
    (same,) = prompt_tokens(tokenizer, ["be short\n\nwhere is it"])
    assert row == same
    assert len(row) <= templated(base, count_tokens(base))([talk])[0] <= len(row) + 2


def test_without_a_template_nothing_is_added(base):
    count = count_tokens(base)
    assert templated(base, count) is count
