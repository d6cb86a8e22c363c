"""Where the factory keeps things and which servers it speaks to: FACTORY_ variables over `factory.toml` over defaults.

Everything that persists lies under one folder, `home`; each URL moves one part elsewhere. Light on purpose: no Prefect,
no MLflow, so that a command which refuses its input answers at once.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from infra.errors import Problem, SettingsRefused
from infra.redaction import redacted
from infra.running import alive

PREFIX = "FACTORY_"
FILE = "factory.toml"
LOOPBACK = "127.0.0.1"

Port = Annotated[int, Field(ge=1, le=65535)]
_URLS = ("ledger_url", "mlflow_uri", "mlflow_artifacts", "prefect_api_url", "prefect_database_url")
_DRIVERS = {"ledger_url": "psycopg", "mlflow_uri": "psycopg", "prefect_database_url": "asyncpg"}


def _under_home(*parts: str) -> Any:
    return lambda known: known["home"].joinpath(*parts)


class Settings(BaseSettings):
    """Frozen; `repr` hides every password."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, toml_file=FILE, frozen=True, extra="forbid", validate_default=True
    )

    home: Path = Field(Path(".factory"), description="Folder of everything that persists.")
    ledger_url: str = Field(
        default_factory=lambda known: f"sqlite:///{known['home']}/ledger.db",
        description="The ledger: `sqlite:///` or `postgresql://`. Default: `ledger.db` in home.",
    )
    store: str = Field(
        default_factory=lambda known: str(known["home"] / "store"),
        description="Content-addressed artifacts: a folder, `s3://bucket/path` or `gs://bucket/path`. Default: `store`"
        " in home.",
    )
    mlflow_uri: str = Field(
        default_factory=lambda known: f"sqlite:///{known['home']}/mlflow/mlflow.db",
        description="MLflow: `sqlite:///`, `postgresql://` or a server's `http://`. Default: `mlflow/mlflow.db`.",
    )
    mlflow_artifacts: str | None = Field(
        default_factory=lambda known: (
            None if known["mlflow_uri"].startswith("http") else (known["home"] / "mlflow" / "artifacts").as_uri()
        ),
        description="Where MLflow keeps files. Default: `mlflow/artifacts` in home; a remote server decides itself.",
    )
    signing_key: Path | None = Field(
        None, description="Private key (PEM, elliptic) that signs every version; then only signed ones are promoted."
    )
    signing_public_key: Path | None = Field(
        None, description="Public key that versions are checked with. Default: the one of `signing_key`."
    )
    prefect_home: Path = Field(
        default_factory=_under_home("prefect"),
        description="Prefect's profile, database and results. Default: `prefect` in home.",
    )
    prefect_api_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="`http://host:port/api` of a Prefect server. Default: that of `factory up`, else an embedded one.",
    )
    prefect_database_url: str | None = Field(
        None, description="Database of our own Prefect server: `postgresql://`. Default: SQLite in `prefect_home`."
    )
    prefect_port: Port = Field(4200, description="Port of the Prefect server that `factory up` starts on this machine.")
    mlflow_port: Port = Field(5000, description="Port of the MLflow server that `factory up` starts on this machine.")
    start_seconds: float = Field(180.0, gt=0, description="How long `factory up` waits for a server to answer.")
    gpu_slots: int = Field(1, ge=1, description="How many runs may hold the accelerator at once, over all workers.")
    worker_runs: int = Field(
        3, ge=1, description="How many flow runs the worker of `factory up` keeps at once, waiting ones included."
    )
    workdir: Path = Field(Path("."), description="Folder from which deployed runs read relative paths.")
    offline: bool = Field(
        True, description="Never download from a model hub; `false` lets a spec name a hub id and revision."
    )

    @field_validator("store")
    @classmethod
    def _folder_or_url(cls, place: str) -> str:
        return place if "://" in place else os.path.abspath(Path(place).expanduser())

    @field_validator("home", "prefect_home", "workdir", "signing_key", "signing_public_key")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return None if folder is None else Path(os.path.abspath(folder.expanduser()))

    @field_validator(*_URLS)
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        scheme, found, rest = url.partition("://")
        if not found or not scheme or not rest:
            raise ValueError("is not a URL; write scheme://...")
        if any(letter.isspace() for letter in url) and not scheme.startswith(("sqlite", "file")):
            raise ValueError("holds white space; write it percent-encoded (%20)")
        return url

    @field_validator(*_DRIVERS)
    @classmethod
    def _with_the_driver_that_is_installed(cls, url: str | None, info: Any) -> str | None:
        """SQLAlchemy 2.0 and 2.1 disagree on the driver behind a bare `postgresql://`; ours is always named."""
        for bare in ("postgresql://", "postgres://"):
            if url is not None and url.startswith(bare):
                return f"postgresql+{_DRIVERS[info.field_name]}://" + url.removeprefix(bare)
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def __repr_args__(self) -> Any:
        return [(name, redacted(value) if isinstance(value, str) else value) for name, value in self]

    @property
    def owns_prefect(self) -> bool:
        """Whether a Prefect server of this home is ours to start; no if the settings name another one."""
        return self.prefect_api_url is None

    @property
    def owns_mlflow(self) -> bool:
        """Whether MLflow's database is ours to open; no if the settings name a server."""
        return not self.mlflow_uri.startswith("http")


def asked_settings(**given: Any) -> Settings:
    """The settings as written in arguments, variables and file, whatever is running.

    Raises:
        SettingsRefused: naming every variable or key that cannot be, without its value where that may hold a secret.
    """
    try:
        return Settings(**given)
    except tomllib.TOMLDecodeError as error:
        raise SettingsRefused(Problem("E-ENV-001", FILE, f"is not TOML: {error}", "mend the line")) from None
    except ValidationError as error:
        rows = [row for row in error.errors(include_url=False) if row["type"] != "default_factory_not_called"]
        raise SettingsRefused(*map(_problem, rows)) from None


def load_settings(**given: Any) -> Settings:
    """The settings, with the servers of this home that run now: a command lands where `factory up` put them.

    Two processes never open Prefect's SQLite file side by side: the embedded server is used only while none runs. A
    worker tells its runs the server by PREFECT_API_URL, which counts when nothing of ours names one.
    """
    asked = asked_settings(**given)
    servers = alive(asked.home) if asked.owns_prefect or asked.owns_mlflow else {}
    found: dict[str, Any] = {}
    if asked.owns_prefect:
        prefect = servers["prefect"].url + "/api" if "prefect" in servers else os.environ.get("PREFECT_API_URL")
        found["prefect_api_url"] = prefect or None
    if asked.owns_mlflow and "mlflow" in servers:
        found["mlflow_uri"] = servers["mlflow"].url
    return asked.model_copy(update=found)


def settings_table() -> str:
    """The settings as a Markdown table, for the documentation; a test holds the two together."""
    rows = ["| variable | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default_factory or field.default is None else f"`{str(field.default).lower()}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def _problem(row: Any) -> Problem:
    name = str(row["loc"][0]) if row["loc"] else ""
    variable = f"{PREFIX}{name.upper()}"
    message = row["msg"].removeprefix("Value error, ")
    if row["type"] == "extra_forbidden":
        from difflib import get_close_matches

        near = get_close_matches(name, Settings.model_fields, n=1)
        remedy = f"write '{near[0]}'" if near else "remove it; `factory doctor` lists the settings"
        return Problem("E-ENV-002", f"{FILE}:{name}", "is not a setting", remedy)
    where = variable if variable in os.environ else f"{FILE}:{name}"
    found = "" if name in _URLS else f", found {redacted(str(row['input']))!r}"
    return Problem("E-ENV-003", where, message[:1].lower() + message[1:] + found, "mend the value")
