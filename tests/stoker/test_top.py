"""`stoker top`: what it shows at any width, and that it outlives the service, its keys and its terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from stoker import cli_top, top
from stoker.cli import app
from stoker.overview_feed import Look
from stoker.text_table import ASCII, plain
from webapi.overview_schemas import Overview

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def document() -> dict[str, Any]:
    """Return an overview in which something of everything goes on; `test_the_document_is_an_overview` checks it."""
    points = 360
    up = {"healthy": True, "in_flight": 3, "limit": 16, "waiting": 0, "latency": 0.5, "models": ["bge"], "why_down": ""}
    down = up | {"url": "http://127.0.0.1:2", "healthy": False, "latency": None, "why_down": "connection refused"}
    engine = {"kind": "vllm", "host": "gpu-1", "slots": 256, "running": 66, "models": [MODEL], "age_seconds": 900.0}
    batch = {"model": MODEL, "lane": "bulk", "engine": "engine", "jobs": 64, "reason": "full"}
    waiting = {"queued": 1_234_567, "delayed": 3, "batched": 128, "running": 64, "oldest_seconds": 412.3}
    percentiles, now = {"p50": [0.25] * points, "p95": [None] * points}, {"p50": 0.25, "p95": 1.5}
    return {
        "object": "overview",
        "at": 1_795_000_000.0,
        "minutes": 60,
        "queue": [
            {"model": MODEL, "lane": "bulk", **waiting},
            {"model": "bge", "lane": "realtime"} | dict.fromkeys(waiting, 0) | {"running": 2, "oldest_seconds": None},
        ],
        "owners": [
            {"owner": "alice", "waiting": 1_234_560, "running": 60},
            {"owner": "bob", "waiting": 7, "running": 6},
        ],
        "engines": [
            engine | {"name": "engine", "state": "live", "busy": 0.83, "silent_seconds": 1.0, "upstreams": []},
            engine
            | {"name": "router", "state": "silent", "busy": None, "silent_seconds": 75.0}
            | {"upstreams": [up | {"url": "http://127.0.0.1:1"}, down]},
        ],
        "batches": [batch | {"id": f"batch_{n:032}", "seconds": 4.0 + n} for n in range(12)],
        "batches_ready": 2,
        "batches_running": 12,
        "deliveries_pending": 4,
        "rates": {"jobs": 12.34, "failed": 0.5, "prompt_tokens": 45_678.0, "completion_tokens": 1_234.5}
        | {"wait": now, "latency": now, "busy": 0.8},
        "series": {
            "step": 10,
            "at": list(range(points)),
            "jobs": [float(n) for n in range(points)],
            **dict.fromkeys(("failed", "prompt_tokens", "completion_tokens", "busy"), [0.5] * points),
            "wait": percentiles,
            "latency": percentiles,
        },
        "sizes": [{"jobs": 64, "batches": 3}],
        "padding": 0.1,
        "errors": [{"code": "engine_error", "jobs": 17}],
    }


def shown(found: dict[str, Any], width: int = 200, **options: Any) -> str:
    """Return an overview as plain text."""
    return "\n".join(plain(line) for line in top.lines(found, width, **options))


def row(text: str, *starts: str) -> list[str]:
    """Return the words of the line that begins so."""
    (found,) = [line.split() for line in text.splitlines() if line.split()[: len(starts)] == list(starts)]
    return found


def test_the_document_is_an_overview() -> None:
    """What these tests show is what the service answers: it has all of its fields, of their types."""
    assert Overview.model_validate(document(), strict=True).model_dump() == document()


def test_everything_is_there() -> None:
    """Queue by model and lane with ages, rates, engines with busy bars, upstreams, batches, failures, owners."""
    text = shown(document())
    assert row(text, MODEL, "bulk")[2:] == ["1.2M", "128", "64", "3", "6m52s"]
    assert row(text, "bge", "realtime")[2:] == ["0", "0", "2", "0", "-"]
    assert row(text, "engine", "live")[2:] == [
        "\u2588" * 8 + "\u2591" * 2,
        "83%",
        "66/256",
        "vllm",
        "gpu-1",
        MODEL,
        "now",
    ]
    assert row(text, "router", "silent")[-3:] == [MODEL, "1m15s", "ago"]
    assert row(text, "http://127.0.0.1:1")[1:] == ["up", "3/16", "0", "0.50", "s"]
    assert row(text, "http://127.0.0.1:2")[1:] == ["down", "3/16", "0", "-", "connection", "refused"]
    assert row(text, "batch_" + "0" * 32)[1:] == [MODEL, "bulk", "engine", "64", "4s", "full"]
    assert row(text, "engine_error") == ["engine_error", "17"]
    assert (row(text, "alice"), row(text, "bob")) == (["alice", "1.2M", "60"], ["bob", "7", "6"])
    for told in ("12.3 jobs/s", "0.5 failed/s", "1,234 tokens/s written", "45.7k read", "12 batches", "2 ready"):
        assert told in text
    assert "oldest 6m52s" in text
    assert "took 0.25 / 1.50 s" in text
    assert row(text, "jobs/s", "in", "1", "h")[-1][::59] == "\u2581\u2588"


@pytest.mark.parametrize("width", [20, 40, 80, 100, 237])
@pytest.mark.parametrize("height", [None, 24, 5])
def test_it_fits(width: int, height: int | None) -> None:
    """No line is wider, nor are there more lines, than the terminal has, also with texts of double width."""
    found = document()
    found["queue"][0]["model"] = "\u6a21\u578b" * 30
    drawn = top.lines(found, width, height)
    # Single words of the head are not broken: below 30 cells the terminal cuts them.
    assert max(cell_len(plain(line)) for line in drawn) <= max(width, 30)
    assert height is None or len(drawn) <= height


def test_what_matters_stays_where_there_is_little_room() -> None:
    """At 40 columns: which model and lane waits, how many, for how long; what engines do; who it is; how many more."""
    text = shown(document(), 40, height=34)
    assert row(text, "HuggingFaceTB\u2026", "bulk")[2:] == ["1.2M", "6m52s"]
    assert row(text, "engine", "live")[2:] == ["\u2588" * 8 + "\u2591" * 2, "83%", "66/256"]
    assert row(text, "alice") == ["alice", "1.2M", "60"]
    assert row(text, "engine_error") == ["engine_error", "17"]
    assert "more" in text


def test_no_name_steers_the_terminal() -> None:
    """Models, owners, hosts, codes and reasons of others may hold anything: no control character is printed."""
    evil = "\x1b[2J\x07\r\n\x9b31m\u202e"
    found = document()
    for kind, name in (("queue", "model"), ("owners", "owner"), ("errors", "code")):
        found[kind][0][name] = evil
    found["engines"][1] |= {"name": evil, "host": evil, "models": [evil], "kind": evil, "state": evil}
    found["engines"][1]["upstreams"][1] |= {"url": evil, "why_down": evil}
    found["batches"][0] |= dict.fromkeys(("id", "model", "lane", "engine", "reason"), evil)
    assert all(sign.isprintable() for line in top.lines(found, 200) for sign in plain(line))


def test_without_admin_there_is_a_queue_and_the_reason() -> None:
    """What only an admin sees is null: one's own jobs are shown, and what the rest takes."""
    found = {
        name: value if name in {"object", "at", "minutes", "queue"} else None for name, value in document().items()
    }
    text = shown(found)
    assert row(text, MODEL, "bulk")[2] == "1.2M"
    assert "scope admin" in text


def test_an_idle_service_says_so() -> None:
    """Nothing waits, no engine is there, nothing was measured: words in their place."""
    found = document() | {name: [] for name in ("queue", "owners", "engines", "batches", "errors")}
    found["series"] = found["series"] | {"jobs": [0.0] * 360}
    text = shown(found)
    assert "nothing waits and nothing runs" in text
    assert "no engine is there" in text
    assert "jobs/s in" not in text


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """Bars, curves and cuts are drawn with ASCII."""
    assert shown(document(), 40, glyphs=ASCII).isascii()


class Service:
    """A service on loopback that answers `/v1/overview`, until it is told to do something else."""

    def __init__(self, port: int) -> None:
        self.document: dict[str, Any] = document()
        self.status = 200
        self.asked: list[tuple[str, str | None]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append((self.path, self.headers.get("Authorization")))
                refusal = {"detail": "This key may not.", "code": "forbidden"}
                body = json.dumps(service.document if service.status == 200 else refusal).encode()
                self.send_response(service.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def end(self) -> None:
        """Go away."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(port: int = 0) -> Iterator[Service]:
    """Run a service."""
    service = Service(port)
    try:
        yield service
    finally:
        service.end()


@pytest.fixture
def service() -> Iterator[Service]:
    """Return a service that answers."""
    with serving() as running:
        yield running


def stoker(*arguments: str, **environment: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, ["top", *arguments], env=environment, catch_exceptions=False)


def test_once_is_plain_text_for_scripts(service: Service) -> None:
    """One look at the service that is asked for, with the key; no colours, status 0."""
    ran = stoker("--once", "--minutes", "15", STOKER_URL=service.url, STOKER_API_KEY="sk-1", COLUMNS="200")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert row(ran.stdout, "alice") == ["alice", "1.2M", "60"]
    assert "\x1b" not in ran.stdout
    assert service.asked == [("/v1/overview?minutes=15", "Bearer sk-1")]


def test_json_is_the_document(service: Service) -> None:
    """With --once one line, which holds what the service answered."""
    ran = stoker("--once", "--json", "--url", service.url)
    assert json.loads(ran.stdout) == document()
    assert ran.stdout.count("\n") == 1


@pytest.mark.parametrize("options", [("--once",), ("--json",), ()])
def test_a_refusal_is_one_line(service: Service, options: tuple[str, ...]) -> None:
    """A key that opens nothing is not tried again and again: status 1, and what the service says."""
    service.status = 403
    ran = stoker(*options, "--url", service.url)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (1, "", "stoker: This key may not.\n")
    assert len(service.asked) == 1


@pytest.mark.parametrize("value", ["7", "soon"])
def test_minutes_are_those_that_there_are(value: str) -> None:
    """Wrong use: status 2, and the values that it takes."""
    ran = stoker("--once", "--minutes", value)
    assert ran.exit_code == 2
    assert "10080" in ran.stderr


@pytest.mark.parametrize(
    "found",
    [{"object": "list"}, {"object": "overview"}, document() | {"queue": [{"model": "m"}]}],
    ids=["another server", "another version", "another queue"],
)
@pytest.mark.parametrize("options", [("--once",), ()])
def test_some_other_server_is_one_line(service: Service, found: dict[str, Any], options: tuple[str, ...]) -> None:
    """An answer that is no overview, or not as this version knows it, is no reason for a traceback."""
    service.document = found
    ran = stoker(*options, "--url", service.url)
    assert ran.exit_code == 1
    assert ran.stderr == "stoker: 127.0.0.1 does not answer as stoker does\n"


def test_a_password_in_the_address_is_not_on_the_screen() -> None:
    """The head tells where it looks, not as whom."""
    title, *_ = cli_top._head(Look(document()), "http://me:hunter2@127.0.0.1:1", 100)
    assert "hunter2" not in plain(title)
    assert "http://127.0.0.1:1" in plain(title)


class Terminal:
    """`stoker top` in a terminal of its own; what it draws, with all that steers."""

    def __init__(self, *arguments: str, columns: int = 80, lines: int = 40, **environment: str) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._before = termios.tcgetattr(self._slave)
        kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stoker.cli", "top", "--interval", "0.2", *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environment,
            start_new_session=True,
        )
        self.drawn = ""

    def until(self, true: Callable[[str], bool]) -> str:
        """Read on until what is drawn since the last time is so, and return that."""
        ends = time.monotonic() + 60
        while not true(self.drawn):
            assert time.monotonic() < ends, self.drawn
            self._read(0.5)
        found, self.drawn = self.drawn, ""
        return found

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def ended(self) -> int:
        """Return the status, and check that the keyboard is as it was."""
        ends = time.monotonic() + 60
        while self.process.poll() is None:  # whoever does not read holds up who writes
            assert time.monotonic() < ends, self.drawn
            self._read(0.1)
        while self._read(0):
            pass
        assert termios.tcgetattr(self._slave) == self._before
        return self.process.returncode

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            self.drawn += os.read(self._master, 65536).decode("utf-8", "replace")
        return bool(ready)


@contextmanager
def terminal(*arguments: str, **options: Any) -> Iterator[Terminal]:
    """Run `stoker top` in a terminal."""
    running = Terminal(*arguments, **options)
    try:
        yield running
    finally:
        running.close()


def by_q(running: Terminal) -> None:
    """Press q."""
    running.press(b"q")


def by_interrupt(running: Terminal) -> None:
    """Do what Ctrl-C does."""
    os.kill(running.process.pid, signal.SIGINT)


def by_termination(running: Terminal) -> None:
    """Do what `kill` does."""
    os.kill(running.process.pid, signal.SIGTERM)


@pytest.mark.parametrize(("end", "status"), [(by_q, 0), (by_interrupt, 0), (by_termination, 143)])
def test_it_is_drawn_in_colours_until_it_is_ended(service: Service, end: Any, status: int) -> None:
    """On a screen of its own, again and again; however it ends, screen, cursor and keyboard are as they were."""
    with terminal("--url", service.url) as running:
        drawn = running.until(lambda text: "engine_error" in text)
        assert "\x1b[?1049h" in drawn
        assert "\x1b[31mengine_error" in drawn
        service.document = document() | {"errors": [{"code": "poison", "jobs": 1}]}
        running.until(lambda text: "poison" in text)
        end(running)
        assert running.ended() == status
        assert "\x1b[?1049l" in running.drawn
        assert "\x1b[?25h" in running.drawn
        assert "Traceback" not in running.drawn


def test_no_color_has_none(service: Service) -> None:
    """With NO_COLOR what is drawn has no colours; bold and dim may stay."""
    with terminal("--url", service.url, NO_COLOR="1") as running:
        drawn = running.until(lambda text: "engine_error" in text)
        assert not any(f"\x1b[{colour}m" in drawn for colour in ("31", "32", "33", "36", "1;31"))


def test_a_service_that_goes_away_is_waited_for() -> None:
    """It says since when, shows what was known, hears its keys all the same, and goes on when the service is back."""
    with terminal_of_a_service() as (running, port):
        gone = running.until(lambda text: "away since" in text and "alice" in text.partition("away since")[2])
        assert "as it was at" in gone
        with serving(port) as second:
            second.document = document() | {"owners": [{"owner": "carol", "waiting": 1, "running": 0}]}
            running.until(lambda text: "carol" in text)
        running.until(lambda text: "away since" in text)
        running.press(b"xq")
        assert running.ended() == 0


@contextmanager
def terminal_of_a_service() -> Iterator[tuple[Terminal, int]]:
    """Run `stoker top`, which has seen a service that is gone since."""
    with serving() as first, ExitStack() as held:
        running = held.enter_context(terminal("--url", first.url))
        running.until(lambda text: "alice" in text)
        kept = held.pop_all()
    with kept:
        yield running, first.port


def test_a_service_that_was_never_there_is_waited_for_too() -> None:
    """Begun before the service, it shows it as soon as it answers."""
    with serving() as service:
        port = service.port
    with terminal("--url", f"http://127.0.0.1:{port}") as running:
        running.until(lambda text: "away since" in text and "waiting for it" in text)
        with serving(port):
            running.until(lambda text: "alice" in text)


def test_a_service_that_hangs_holds_up_no_key() -> None:
    """It takes the connection and never answers: q ends it all the same, and nothing is said."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        terminal("--url", f"http://127.0.0.1:{server.getsockname()[1]}") as running,
    ):
        running.until(lambda text: "looking" in text)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(16).startswith(b"GET /v1/overview")
            running.press(b"q")
            assert running.ended() == 0
        assert "Traceback" not in running.drawn


def test_in_a_pipe_it_prints_one_look_after_the_other() -> None:
    """Without a terminal nothing steers one, an away service is told of once, and Ctrl-C is no failure."""
    with serving() as service:
        command = [sys.executable, "-m", "stoker.cli", "top", "--interval", "0.2", "--json", "--url", service.url]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert running.stdout is not None
        assert running.stderr is not None
        assert [json.loads(running.stdout.readline())["minutes"] for _ in range(2)] == [60, 60]
    with running:
        assert "does not answer" in running.stderr.readline()
        with serving(service.port) as again:
            again.document = document() | {"minutes": 15}
            while json.loads(running.stdout.readline())["minutes"] != 15:
                pass
            running.send_signal(signal.SIGINT)
            said, complained = running.communicate()
    assert (running.returncode, complained) == (0, "")
    assert "\x1b" not in said
