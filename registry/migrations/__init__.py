"""The schema's history, applied by `Ledger.open`. Alembic is imported only when there is something to do.

A new revision: change tables.py, write versions/rNNNN_what.py with its way up and down, set HEAD. Tests compare the
migrated schema with tables.py on both databases and walk the history down and up again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import IntegrityError

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD = "0005"
FOLDER = Path(__file__).parent


def upgrade(connection: Connection, revision: str | None, *, shown: str) -> None:
    """Bring the schema from `revision` (None: empty) to HEAD inside the connection's transaction.

    Raises:
        IntegrityError: the schema was written by a newer program.
    """
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        wrong = f"has schema {revision}; this program knows up to {HEAD}"
        raise IntegrityError.one("E-LEDGER-012", shown, wrong, "install the version of the factory that wrote it")
    command.upgrade(config, "head")


def downgrade(connection: Connection, revision: str) -> None:
    """Take the schema back to `revision` ("base": nothing left)."""
    from alembic import command

    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
