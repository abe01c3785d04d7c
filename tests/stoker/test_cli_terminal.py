"""Terminals, pipes and disks that the command line meets: nothing steers them, and what they lack is one line."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stoker import cli_reference, console
from stoker.cli import app
from tests.stoker.hostile_service import EVIL, MARK, hostile_service
from tests.terminals import drawn_on

STOKER = [sys.executable, "-m", "stoker.cli"]

SHOWN = """\
submit hi --wait | submit hi --json | submit hi --stream | submit hi | status failed | status j | follow j
follow failed | follow j --json | cancel j | jobs | jobs --json | top --once | top --once --json | usage
usage --json | status refused
bulk submit FILE | bulk run FILE -o NEW | bulk dry-run FILE | bulk retry b | bulk status b | bulk wait failed
bulk list | bulk list --json | bulk cancel b | bulk pause b | bulk resume b | bulk lane b bulk
bulk results b | bulk results b --format csv | bulk errors b | bulk errors b --json | bulk wait b
batch create FILE --wait | batch status b | batch wait failed | batch list | batch cancel b | batch results b
webhooks list | webhooks create http://127.0.0.1:1/hook --event job.failed | webhooks enable w | webhooks rotate w
webhooks test w | webhooks deliveries | webhooks deliveries d | webhooks redeliver d
"""
"""What shows a text of the service's: every command that speaks HTTP, all but those that say only what was asked."""
SILENT = {"bulk delete", "webhooks delete"}
OFFLINE = {"up", "engine", "ps", "health", "demo", "doctor", "restart", "keys", "db", "completion"}


def commands(folder: Path) -> list[list[str]]:
    """Return the commands as words."""
    source = folder / "prompts.jsonl"
    source.write_text('{"prompt": "hi"}\n')
    names = {"FILE": str(source), "NEW": str(folder / "new.jsonl")}
    lines = [line.strip() for text in SHOWN.splitlines() for line in text.split("|")]
    return [[names.get(word, word) for word in line.split()] for line in lines]


def test_no_text_of_a_service_steers_the_terminal(tmp_path: Path) -> None:
    """Ids, answers, errors, names, in lists, as JSON, in files that are printed: shown, but nothing of it is obeyed."""
    asked = commands(tmp_path)
    script = """
import json, sys
from stoker.cli import app
for words in json.loads(sys.argv[1]):
    print("\\n<<<", *words)
    try:
        app(words, prog_name="stoker")
    except SystemExit as end:
        print("\\n>>>", end.code)
"""
    leader, follower = pty.openpty()
    with hostile_service() as url:
        environment = os.environ | {"STOKER_URL": url, "TERM": "xterm", "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-c", script, json.dumps(asked)]
        with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as running:
            os.close(follower)
            drawn = drawn_on(leader)
        os.close(leader)
    assert running.returncode == 0, drawn.decode()
    told = drawn.decode().split("\n<<< ")[1:]
    assert len(told) == len(asked)
    assert [text for text in told if "Traceback" in text] == []
    assert [text for text in told if MARK not in text] == []
    # What rich and red errors need, and no more: colours, the cursor, cleared lines.
    ours = re.compile(r"\x1b\[(\?25[lh]|[0-9;]*m|2K|1A)|\r")
    assert [text for text in told if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", ours.sub("", text))] == []
    assert [text for text in told if "\x1b[31m\u202e" in text or "\x1b[2J" in text] == []


def test_every_command_is_among_those(tmp_path: Path) -> None:
    """A new command is tried, too."""
    tried = [tuple(words) for words in commands(tmp_path)]
    known = [path for path, _ in cli_reference.commands() if path[0] not in OFFLINE and " ".join(path) not in SILENT]
    assert [path for path in known if not any(words[: len(path)] == path for words in tried)] == []


def test_programs_get_what_is_there() -> None:
    """In a pipe an answer is the model's, to the last character; JSON says the same in its own escapes."""
    with hostile_service() as url:
        answer = stoker("submit", "hi", "--wait", STOKER_URL=url)
        as_json = stoker("status", "j", "--json", STOKER_URL=url)
        refused = stoker("status", "refused", STOKER_URL=url)
    assert answer.stdout_bytes == f"{EVIL}\n".encode()
    assert as_json.stdout[:-1].isprintable()
    assert json.loads(as_json.stdout)["model"] == EVIL
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr[:-1].isprintable()


def stoker(*arguments: str, **environment: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)


@pytest.mark.parametrize("key", ["sk-hunter2\r", "sk-hunter2\n", "sk-h\u00e9-hunter2", "sk-hunter2\x1b"])
def test_a_key_that_cannot_be_sent_is_not_shown(key: str) -> None:
    """A line end from a file, a letter from elsewhere: wrong use, and the key is not in the line that says so."""
    told = stoker("jobs", STOKER_API_KEY=key, STOKER_URL="http://127.0.0.1:1")
    assert told.exit_code == 2
    assert told.stderr.startswith("stoker: the API key ")
    assert "hunter2" not in told.output


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_password_in_the_address_is_not_shown(scheme: str) -> None:
    """Whatever goes wrong there, only where it is is told."""
    told = stoker("jobs", STOKER_URL=f"{scheme}://me:hunter2@127.0.0.1:1")
    assert told.exit_code in {1, 2}
    assert f"{scheme}://127.0.0.1:1" in told.stderr
    assert "hunter2" not in told.output


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """Status 1 and the reason, of whatever command."""
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [*STOKER, "ps", "--json", "--data", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (1, "stoker: [Errno 28] No space left on device\n")


def test_a_reader_that_goes_away_is_no_failure_to_tell_of(tmp_path: Path) -> None:
    """`stoker ... | head`: the status of any program in a pipe, and not a word."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        ran = subprocess.run(
            [*STOKER, "ps", "--json", "--data", str(tmp_path)],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (console.READER_GONE, "")


@pytest.mark.parametrize(("words", "given"), [(["-"], b"\xff\xfe"), ([b"\xff"], b"")])
def test_a_text_that_is_not_utf_8_is_wrong_use(words: list[str | bytes], given: bytes) -> None:
    """From the standard input or as an argument: one line, status 2."""
    command = [*STOKER, "submit", *words, "--url", "http://127.0.0.1:1"]
    ran = subprocess.run(command, input=given, capture_output=True, check=False, env=os.environ | {"PYTHONUTF8": "1"})
    assert (ran.returncode, ran.stderr) == (2, b"stoker: a text that was given is not UTF-8\n")


def test_a_terminal_without_the_sign_gets_a_question_mark() -> None:
    """An answer in letters that the terminal's encoding lacks is no reason for a traceback."""
    with hostile_service() as url:
        ran = subprocess.run(
            [*STOKER, "status", "j", "--url", url],
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.isascii()


@pytest.mark.parametrize("words", [("submit", "hi", "--wait"), ("submit", "hi", "--stream")])
def test_ctrl_c_while_waiting_says_what_goes_on(words: tuple[str, ...]) -> None:
    """Status 130, and how to come back to the job, whose id nobody has seen yet."""
    waits, ended = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            job = {"id": "job_1", "state": "queued", "lane": "realtime", "model": "m", "endpoint": "/", "attempts": 0}
            body = json.dumps(job | {"created_at": 0.0}).encode()
            self.send_response(202)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            waits.set()
            ended.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        command = [*STOKER, *words, "--url", f"http://127.0.0.1:{server.server_port}"]
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
                assert waits.wait(60)
                running.send_signal(signal.SIGINT)
                printed, told = running.communicate()
        finally:
            ended.set()
            server.shutdown()
            thread.join()
    assert (running.returncode, printed) == (130, "")
    assert told.splitlines()[-1] == "stoker: interrupted; job_1 goes on: `stoker follow job_1`"
