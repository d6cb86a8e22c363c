"""Settings become an open ledger, store and tracker: the one place where the parts meet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from infra.settings import Settings, load_settings
from registry.ledger import Ledger
from registry.provenance import code_record
from registry.records import CodeRecord
from registry.remote_store import open_store
from registry.store import Store
from registry.tracking import Tracker

if TYPE_CHECKING:
    from registry.signing import Signer


@dataclass(frozen=True)
class Home:
    """Everything that is remembered, opened."""

    settings: Settings
    ledger: Ledger
    store: Store
    tracker: Tracker
    code: CodeRecord

    def scratch(self) -> Path:
        """A folder for work that is not yet worth remembering."""
        folder = self.settings.home / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def opened() -> Home:
    """The home of this process's settings."""
    return _opened(load_settings())


def signer_of(settings: Settings) -> Signer | None:
    """The key that signs and vouches for versions, where one is configured."""
    if settings.signing_key is None and settings.signing_public_key is None:
        return None
    from registry.signing import Signer

    return Signer(settings.signing_key, settings.signing_public_key)


@cache
def _opened(settings: Settings) -> Home:
    store = open_store(settings.store, cache=settings.home / "cache")
    ledger = Ledger.open(settings.ledger_url, store=store, signer=signer_of(settings))
    code = code_record()
    ledger.remember_code(code)
    tracker = Tracker(settings.mlflow_uri, folder=settings.home / "mlflow")
    return Home(settings, ledger, store, tracker, code)


def flow_run_id() -> str | None:
    """The id of the Prefect flow run that this code runs in, if it does."""
    from prefect.runtime import flow_run

    return flow_run.id or os.environ.get("PREFECT__FLOW_RUN_ID") or None
