"""How PostgreSQL is spoken to: what each session is told first, so that nothing holds its locks for ever.

A client that dies closes its connections, and its locks go with them. One whose machine vanishes closes nothing, and
something in between, a proxy say, may keep the connection up. What is left then ends by itself: idle in a transaction
after 30 s; in the middle of statements that were sent together, where the server knows no idleness, with the longest
time of a transaction, which PostgreSQL has from 17 on. Of an older server only its keepalives are left.
"""

from __future__ import annotations

import math
import time
from typing import Any

import sqlalchemy as sa

from models import pooling

LONGEST, LONGEST_OF_A_CROWD = 60, 8
"""Seconds that PostgreSQL gives a statement; fewer behind a gate, where others wait for the place."""
LONGEST_TRANSACTION = 90
"""Seconds that it gives a transaction. None here spans anything but statements."""
PING_AFTER = 1.0
"""Seconds without use after which a pooled connection is asked whether it still lives."""

_TIMEOUTS = {"lock_timeout": "5s", "idle_in_transaction_session_timeout": "30s"}
# As the client looks after the server, so the server after the client; its own default is two hours.
_KEEPALIVES = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}
# Every query here has its index, but a plan made while a table was small, or for a lane that used to be full, reads
# the whole table: with 300,000 jobs a cut took 145 ms (3 ms by index), the look for waiting jobs 163 ms (2 ms).
_PLANS = {"enable_seqscan": "off", "jit": "off"}
_KNOWS_TRANSACTIONS = 170_000
POOLED = {
    "statement_timeout": f"{LONGEST}s",
    "transaction_timeout": f"{LONGEST_TRANSACTION}s",
    **_TIMEOUTS,
    **_PLANS,
}
"""What PgBouncer is to tell its sessions; whether a client has vanished it looks after itself."""


def engine(url: str, pool_size: int, *, crowded: bool) -> sa.Engine:
    """Return an engine that is not connected yet; `crowded`: others wait for its connections."""
    target, pooled = pooling.direct(url)
    told = {"statement_timeout": f"{LONGEST_OF_A_CROWD if crowded else LONGEST}s"} | _TIMEOUTS | _KEEPALIVES | _PLANS
    # PgBouncer refuses options, and what is prepared lies in a session that the next transaction does not get.
    ours = {"options": " ".join(f"-c {name}={value}" for name, value in told.items())}
    made = sa.create_engine(
        target,
        pool_size=pool_size,
        max_overflow=10,
        pool_timeout=5,
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            **({"prepare_threshold": None} if pooled else ours),
        },
    )
    if not pooled:
        sa.event.listen(made, "connect", _limit_transactions)
    _ping_the_idle(made)
    return made


def unlimited(connection: sa.Connection) -> None:
    """Let the statements and transactions of a session take as long as they like."""
    names = ["statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"]
    # Those that this server has.
    chosen = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY (%s)"
    connection.exec_driver_sql(chosen, (names,))


def _limit_transactions(connection: Any, _record: Any) -> None:
    # Not among the options: an older server would refuse the connection.
    if connection.info.server_version < _KNOWS_TRANSACTIONS:
        return
    connection.autocommit = True
    connection.execute(f"SET transaction_timeout = '{LONGEST_TRANSACTION}s'")
    connection.autocommit = False


def _ping_the_idle(made: sa.Engine) -> None:
    """Look whether a connection still lives before it is used, unless it was in use a moment ago.

    `pool_pre_ping` asks each time: a fifth of what a POST costs.
    """

    def note(_connection: Any, record: Any) -> None:
        record.info["used_at"] = time.monotonic()

    def ping(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get("used_at", math.inf) > PING_AFTER:
            try:
                made.dialect.do_ping(connection)
            except made.dialect.loaded_dbapi.Error as error:
                raise sa.exc.DisconnectionError from error

    sa.event.listen(made, "checkin", note)
    sa.event.listen(made, "checkout", ping)
