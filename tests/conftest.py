"""One thread, no network, no telemetry, and two small real models made in seconds."""

from __future__ import annotations

import gc
import glob
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from shared_work import once_for_all

# torch and the hub read these when they are imported, which no line above does
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}
os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
os.environ |= {"GX_ANALYTICS_ENABLED": "False", "MPLBACKEND": "Agg"}

VOCABULARY = 300


def pytest_configure() -> None:
    """Collecting imports the whole stack, of which nothing is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there now stays until the end: the collector need not look at it again and again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First a file of flows that asks for the last stage, then what asks for none, then the other flows: one process
    makes the stages for all while the others have something else to do."""
    flows = [item for item in items if "flows" in item.path.parts]
    first = next((item.path for item in flows if "moved" in getattr(item, "fixturenames", ())), None)
    items.sort(key=lambda item: (item.path != first, "flows" in item.path.parts))


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


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes which run the tests have in common."""
    mine = tmp_path_factory.getbasetemp()
    return mine.parent if hasattr(request.config, "workerinput") else mine


@pytest.fixture(scope="session")
def mlflow_template(shared: Path) -> Path:
    """MLflow's empty database, which takes seconds: built once, to be copied. What MLflow reads from the environment is
    set in every process that asks."""
    from registry.mlflow_access import client

    with once_for_all(shared / "mlflow.db") as path:
        known, service = path.exists(), client(f"sqlite:///{path}")
        if not known:
            service.search_experiments()
    return path


# PostgreSQL --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a server of our own."""
    with running_postgres() as (address, _):
        yield address


@contextmanager
def running_postgres() -> Iterator[tuple[str, Callable[[], None]]]:
    """A server in a temporary folder, on a socket only; as user postgres where we are root. Its address, and a way to
    stop it at once, as a crash does, and start it again."""
    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql/*/bin")
    programs = Path(found).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="factory-pg-"))
    as_postgres: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None or subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
        shutil.chown(folder, "postgres", "postgres")
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def run(program: str, *arguments: str) -> None:
        subprocess.run([*as_postgres, str(programs / program), *arguments], check=True, capture_output=True, cwd=folder)

    data = str(folder / "data")
    quick = f"-c listen_addresses='' -k {folder} -c fsync=off -c synchronous_commit=off -c max_connections=60"
    run("initdb", "-D", data, "-U", "factory", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
    start = ("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", quick, "start")

    def crash_and_restart() -> None:
        run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        run(*start)

    run(*start)
    yield f"postgresql://factory@/postgres?host={folder}", crash_and_restart
    run("pg_ctl", "-D", data, "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def crashing_postgres() -> Iterator[tuple[str, Callable[[], None]]]:
    """A server for one test that stops it."""
    with running_postgres() as found:
        yield found


@pytest.fixture(scope="session")
def database_on() -> Any:
    """Makes a fresh database on a server, as a context: its URL."""
    return _database_on


@pytest.fixture
def empty_postgres_url(postgres_server: str, database_on: Any) -> Iterator[str]:
    with database_on(postgres_server) as url:
        yield url


@contextmanager
def _database_on(server: str, options: str = "", *, keep: bool = False) -> Iterator[str]:
    """A fresh database."""
    import psycopg

    name = f"ledger_{os.urandom(4).hex()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}")
        yield server.replace("/postgres?", f"/{name}?")
        if not keep:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
