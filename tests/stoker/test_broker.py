"""The bundled Redis: starts by itself, keeps strangers out, gives way to clients' own ports."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from stoker import broker
from stoker.broker import Broker, BrokerError


@contextmanager
def running(made: Broker, folder: Path) -> Iterator[None]:
    """Run Redis until the end of the block."""
    process = subprocess.Popen(made.command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + 60
        while not made.answers():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_it_asks_for_a_password_and_keeps_its_data(tmp_path: Path) -> None:
    """Only who reads the configuration gets in, no command line tells the password, a restart forgets nothing."""
    made = Broker(tmp_path)
    secret = made.url.partition(":")[2].partition("@")[0].strip("/:")
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
    assert secret not in " ".join(made.command)
    with running(made, tmp_path), redis.Redis.from_url(made.url) as client:
        client.set("bell", "rung")
        port = client.connection_pool.connection_kwargs["port"]
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    with running(made, tmp_path), redis.Redis.from_url(made.url) as client:
        assert client.get("bell") == b"rung"


def test_its_port_is_not_one_that_connections_get(tmp_path: Path) -> None:
    """A client that reconnects in a loop while Redis is down can never be given Redis's own port."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = int(Broker(tmp_path).url.rpartition(":")[2].partition("/")[0])
    assert 1024 < port < lowest


def test_data_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    """Redis holds wake-up calls only: rather than not start, it starts without them."""
    made = Broker(tmp_path)
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir/appendonly.aof.manifest").write_text("nonsense")
    assert not made.answers()
    aside = made.set_aside()
    assert (aside / "appendonly.aof.manifest").read_text() == "nonsense"
    with running(made, tmp_path):
        assert made.answers()


def test_without_any_redis_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bundled and no installed Redis: the message names the three ways out."""
    monkeypatch.setattr(broker.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BrokerError, match=r"'\.\[local\]'.*redis-server.*--redis-url"):
        broker.program()
