"""RabbitMQ as the broker: the promise is the same, whatever becomes of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import kombu
import pytest
import redis
from cryptography.hazmat.primitives import serialization

from stoker import checks_broker, doctor, health
from stoker.checks_broker import Queue, queues, rabbitmq
from stoker.service_settings import written_down
from stoker.settings import Settings, load
from tests import servers
from tests.journeys.running import STOKER
from tests.journeys.test_faults import Run, words
from tests.rabbitmq import RabbitMQ
from tests.rabbitmq import rabbitmq as running
from tests.tasks.inprocess import until
from tests.tasks.test_ssrf import Authority
from webapi.doorbell import Doorbell

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

QUEUES = ["collector", "default", "bulk", "engine.engine"]
HEARD = dict.fromkeys(QUEUES, Queue(0, 1))


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    """Run a RabbitMQ that a test may kill, if it starts it again."""
    with running() as server:
        yield server


def settings_of(run: Run) -> Settings:
    """Return the settings of a service that runs."""
    found = written_down(run.data)
    assert found is not None
    return found


def timed(run: Run, *prompts: str) -> list[float]:
    """Hand in jobs; return how long the POST of each took."""
    took = []
    for prompt in prompts:
        started = time.monotonic()
        run.submit(prompt)
        took.append(time.monotonic() - started)
    return took


def failures(run: Run) -> float:
    """Return how many rings the web server could not send."""
    page = run.client._http.get("/metrics").text
    return sum(map(float, re.findall(r"^stoker_doorbell_failures_total(?:{.*})? (\S+)$", page, re.MULTILINE)))


def well(settings: Settings) -> set[str]:
    """Return what `stoker doctor` has nothing to say of; how fast it answers depends on the machine."""
    return {finding.check for finding in rabbitmq(settings) if finding.status == "ok"}


def test_doorbells_go_through_it_whatever_becomes_of_it(data: Path, broker: RabbitMQ) -> None:
    """Through it and nothing else; a kill -9 and a hang cost time, never a job nor a POST; and workers hear again."""
    with Run(data, STOKER_BROKER_URL=broker.url) as run:
        settings = settings_of(run)
        run.submit(*words(10), lane="standard")
        assert run.check() == {"succeeded": 10}
        until(lambda: queues(settings, QUEUES) == HEARD, 60)
        until(lambda: {"broker-writes", "queues"} <= well(settings), 60)
        with redis.Redis.from_url(settings.redis_client_url) as client:
            assert not [name for name in QUEUES if client.exists(name)]
        command = [*STOKER, "restart", "--data", str(data), "worker"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr

        # Its queues are deleted while work goes on: each worker hears of it, makes its own anew, and loses no more.
        run.submit(*words(32, "[[slow:0.3]]"), lane="standard")
        until(lambda: run.count("running"), 60)
        with kombu.Connection(broker.url) as connection:
            for name in QUEUES:
                connection.channel().queue_delete(name)
        run.submit(*words(32, "[[slow:0.1]]"), lane="standard")
        assert run.check() == {"succeeded": 74}
        until(lambda: queues(settings, QUEUES) == HEARD, 60)
        for name in ("collector", "engine"):
            assert (data / "logs" / f"{name}.log").read_text().count("Connection to broker lost") == 1

        broker.stop(signal.SIGKILL)
        took = timed(run, *words(10))
        broker.start()
        until(lambda: run.count("succeeded") == 84, 120)

        before = failures(run)
        os.killpg(broker.pid, signal.SIGSTOP)
        took += timed(run, *words(10))
        until(lambda: failures(run) > before, 120)
        os.killpg(broker.pid, signal.SIGCONT)
        assert run.check() == {"succeeded": 94}
        # The least that a POST would wait for it are its connection's two seconds.
        assert statistics.median(took) < 1, took
        until(lambda: queues(settings, QUEUES) == HEARD, 120)


def test_a_ring_is_worth_no_disk_and_no_hour(broker: RabbitMQ) -> None:
    """What nobody takes within a minute RabbitMQ drops; a restart forgets it."""
    settings = load(broker_url=broker.url)
    bell = Doorbell(settings)
    bell.ring_bulk("bulk_1")
    until(lambda: queues(settings, ["bulk"])["bulk"].messages, 60)
    bell.close()
    with kombu.Connection(broker.url) as connection:
        queue = kombu.Queue("bulk", channel=connection.channel())
        message = queue.get()
        assert message is not None
        message.ack()
        assert message.headers["task"] == "tasks.bulks.tend"
        assert (message.properties["delivery_mode"], message.properties["expiration"]) == (1, "60000")
        queue.delete()


def test_the_doctor_says_who_does_not_listen(broker: RabbitMQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues without a worker, what lies there, and a broker that is gone: named without its password."""
    settings = load(broker_url=broker.url)
    monkeypatch.setattr(checks_broker, "LOOK_AGAIN", 0.0)
    with kombu.Connection(broker.url) as connection:
        queue = kombu.Queue("default", channel=connection.channel())
        queue.delete()
        queue.declare()
        for _ in range(checks_broker.MANY):
            kombu.Producer(connection).publish("", routing_key="default")
        until(lambda: queues(settings, ["default"])["default"].messages == checks_broker.MANY, 60)
        found = [finding for finding in rabbitmq(settings) if finding.status != "ok"]
        queue.delete()
    assert [(one.check, one.status) for one in found] == [
        ("queues", "warning"),
        ("queues", "problem"),
        ("queues", "warning"),
        ("queues", "warning"),
    ]
    assert "nobody listens to the queue default, where 100 messages lie" in found[1].says
    assert "stoker restart worker" in found[1].do


def test_a_rabbitmq_that_is_gone_is_told() -> None:
    """By `stoker doctor`, which names it without its password, and by the health of a worker."""
    settings = load(broker_url=f"amqp://me:s3cr3t-word@127.0.0.1:{servers.free_port()}//")
    (found,) = rabbitmq(settings)
    assert (found.check, found.status) == ("broker", "problem")
    assert "STOKER_BROKER_URL" in found.do
    assert "s3cr3t-word" not in found.says
    assert "s3cr3t-word" in doctor.secrets_of(settings)
    with pytest.raises(health.Unhealthy, match="RabbitMQ cannot be reached"):
        health.worker(settings)
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        health.worker(load(broker_url=f"amqp://127.0.0.1:{other.getsockname()[1]}//"))


@pytest.mark.parametrize(("name", "says"), [("127.0.0.2", "not valid for"), ("127.0.0.1", "")])
def test_a_certificate_of_another_host_is_refused(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where amqps:// is asked for; a private authority is named as OpenSSL has it, in SSL_CERT_FILE."""
    authority = Authority(tmp_path)
    known = tmp_path / "known"
    known.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(known))
    greeted: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    one, _ = server.accept()
                    with suppress(OSError), context.wrap_socket(one, server_side=True) as secured:
                        greeted.append(secured.recv(8))

        context = authority.serving(name)
        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        (found,) = rabbitmq(load(broker_url=f"amqps://guest@127.0.0.1:{server.getsockname()[1]}//"))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert found.status == "problem"
    assert says in found.says
    assert set(greeted) == ({b"AMQP\0\0\x09\x01"} if name == "127.0.0.1" else set())
