"""How SQLite is spoken to: what each connection is told first, and how its transactions begin."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

import sqlalchemy as sa

PATIENCE = 10.0
"""Seconds to wait for the write lock."""


def prepare(connection: Any, _record: Any) -> None:
    """Set up a new connection."""
    # The driver's own implicit BEGIN is switched off; `begin` says which kind it is to be.
    connection.isolation_level = None
    cursor = connection.cursor()
    # NORMAL may lose accepted jobs when the power fails; the promise needs FULL.
    for pragma in ("synchronous=FULL", "busy_timeout=10000", "cache_size=-65536"):
        cursor.execute(f"PRAGMA {pragma}")
    _switch_to_wal(cursor)
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """Set the journal's mode; tried again by us, since SQLite does not wait here while another opens a new file."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > until:
                raise
        time.sleep(0.01)


def begin(connection: sa.Connection) -> None:
    """Begin a transaction of the kind that was asked for."""
    # A transaction that begins by reading and then writes fails at once when another wrote in between.
    read = connection.get_execution_options().get("stoker_read")
    connection.exec_driver_sql("BEGIN" if read else "BEGIN IMMEDIATE")
