"""One thread, no network, no telemetry, and two small real models made in seconds."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

# torch and the hub read these when they are imported, which no line above does
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
os.environ |= {"GX_ANALYTICS_ENABLED": "False", "MPLBACKEND": "Agg"}

VOCABULARY = 300


def spoken_words(count: int, seed: int = 0) -> list[str]:
    """Distinct made-up words of two to four syllables."""
    draw = Random(seed)
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(2, 4)))
        words["".join(syllables)] = None
    return list(words)


def _tokenizer(template: str, specials: list[str], **names: str) -> Any:
    """Byte-level BPE over made-up sentences: it encodes any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words, draw = spoken_words(60), Random(1)
    tokenizer.train_from_iterator((" ".join(draw.choices(words, k=8)) for _ in range(200)), trainer)
    pairs = [(name, tokenizer.token_to_id(name)) for name in specials if name in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama (hidden 64) and its own tokenizer, as safetensors."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny_base")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    tokenizer = _tokenizer("<bos> $A", ["<pad>", "<bos>", "<eos>"], **names)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=True,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer BERT (hidden 64), published as encoders are: the body alone, without a head."""
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny_encoder")
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    tokenizer = _tokenizer("[CLS] $A [SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], **names)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.08,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def made_up_words() -> list[str]:
    """Sixty words that the tiny tokenizers have seen."""
    return spoken_words(60)
