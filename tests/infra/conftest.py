"""Every test starts in an empty folder, without a FACTORY_ variable, and leaves the environment as it was."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _nobody_configured_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    for name in before:
        if name.startswith(("FACTORY_", "PREFECT_")):
            del os.environ[name]
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def listener() -> Iterator[Callable[[], int]]:
    """Opens a listening socket of this process and tells its port."""
    opened: list[socket.socket] = []

    def listen() -> int:
        server = socket.socket()
        opened.append(server)
        server.bind(("127.0.0.1", 0))
        server.listen()
        return int(server.getsockname()[1])

    yield listen
    for server in opened:
        server.close()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
