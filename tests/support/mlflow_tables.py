"""MLflow's database as the tests see it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any


def sql(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """MLflow's own tables, read without MLflow."""
    with sqlite3.connect(folder / "mlflow.db", timeout=30) as connection:
        return connection.execute(query).fetchall()
