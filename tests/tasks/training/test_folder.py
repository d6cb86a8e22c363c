"""A base as files, before torch is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tasks.errors import ArtifactRefused
from tasks.specs import BaseSpec
from tasks.training.folder import count_tokens, first_line, folder_problems, local_folder


def test_texts_are_counted_as_the_models_own_tokenizer_cuts_them(
    tiny_base: Path, tiny_encoder: Path, made_up_words: list[str]
) -> None:
    from transformers import AutoTokenizer

    texts = [" ".join(made_up_words[:count]) for count in (1, 2, 7, 60)] + ["", "{ümläut}\n\t😀"]
    for folder in (tiny_base, tiny_encoder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert count_tokens(folder)(texts) == [len(tokenizer(text)["input_ids"]) for text in texts]


def test_a_length_stored_with_the_tokenizer_does_not_cut_the_count(tiny_base: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = ["ba", "ba be bi bo bu " * 20]
    assert count_tokens(folder)(texts) == count_tokens(tiny_base)(texts)


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_missing_or_broken_tokenizer_is_refused(tiny_base: Path, tmp_path: Path, content: str | None) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ArtifactRefused, match=r"E-BASE-008 .*tokenizer\.json"):
        count_tokens(folder)


def test_everything_that_keeps_a_folder_from_being_a_base_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"auto_map": {}}')
    assert [problem.code for problem in folder_problems(tmp_path)] == ["E-BASE-005", "E-BASE-003"]
    with pytest.raises(ArtifactRefused) as refused:
        local_folder(BaseSpec(model=str(tmp_path)))
    assert len(refused.value.problems) == 2
    assert "pytorch_model.bin" in str(refused.value)


def test_what_a_library_says_is_cut_to_one_line() -> None:
    assert first_line(ValueError("first\nsecond")) == "first"
    assert first_line(ValueError("")) == "ValueError"
    assert len(first_line(ValueError("x" * 999))) == 200
