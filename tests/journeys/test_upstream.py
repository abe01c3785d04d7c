"""`stoker up --engine upstream` in front of servers that come, go and fail, and `stoker engine` beside it."""

from __future__ import annotations

import json
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.journeys.running import STOKER, Up, left_of
from tests.tasks.inprocess import until
from tests.upstreams import Reply, Server, upstream

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


def client_of(url: str) -> openai.OpenAI:
    """Return the stock client."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def names(client: openai.OpenAI) -> set[str]:
    """Return the models that are served."""
    return {model.id for model in client.models.list()}


def ask(client: openai.OpenAI, text: str, model: str = "tiny") -> str:
    """Return the answer to a chat."""
    chat = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return str(chat.choices[0].message.content)


def streamed(client: openai.OpenAI, text: str) -> str:
    """Return the answer to a chat, from its pieces."""
    chunks = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_two_servers_behind_one_address(data: Path) -> None:
    """Models of both are found, requests go to both, and one that dies is not noticed by any client."""
    with upstream("tiny") as one, upstream("tiny", "other") as two:
        up = Up(data, "--engine", "upstream", STOKER_UPSTREAMS=f"{one.url},{two.url}", STOKER_UPSTREAM_CHECK_EVERY="1")
        with client_of(up.url()) as client:
            until(lambda: names(client) == {"tiny", "other"}, 60)
            assert ask(client, "hello") == "echo: hello"
            assert streamed(client, "hello again") == "echo: hello again"
            assert ask(client, "large 12345678901234567890", "other") == "echo: large 12345678901234567890"
            with pytest.raises(openai.NotFoundError):
                ask(client, "hello", "nobody")
            with ThreadPoolExecutor(8) as pool:
                asked = [pool.submit(ask, client, str(number)) for number in range(40)]
                one.down()
                assert [future.result() for future in asked] == [f"echo: {number}" for number in range(40)]
            until(lambda: ask(client, "on the other one") == "echo: on the other one", 60)
        assert up.end() == 0
    assert left_of(data) == []


def test_servers_that_come_later_and_go(data: Path, tmp_path: Path) -> None:
    """A service that is started before its servers finds them; a file adds and removes them while it runs."""
    listed = tmp_path / "upstreams.json"
    with upstream("tiny", listening=False) as late, upstream("other") as other:
        listed.write_text(json.dumps([{"url": late.url}]))
        up = Up(data, "--engine", "upstream", STOKER_UPSTREAMS_FILE=str(listed), STOKER_UPSTREAM_CHECK_EVERY="1")
        with client_of(up.url()) as client:
            assert names(client) == set()
            late.up()
            until(lambda: names(client) == {"tiny"}, 60)
            assert ask(client, "hello") == "echo: hello"
            listed.write_text(json.dumps([{"url": other.url, "max_connections": 2}]))
            until(lambda: names(client) == {"other"}, 60)
            assert ask(client, "hello", "other") == "echo: hello"
        assert up.end() == 0
    assert left_of(data) == []


def test_without_servers_it_says_what_to_set(data: Path) -> None:
    """The engine that has nowhere to send is told in one line how to have."""
    up = Up(data, "--engine", "upstream")
    assert up.process.wait(180) == 78
    up._listener.join(10)
    assert "STOKER_UPSTREAMS" in "\n".join(up.lines)
    assert left_of(data) == []


def test_a_second_engine_with_another_model(data: Path) -> None:
    """`stoker engine` joins a service that runs, serves its model beside the first, and leaves in order."""
    up = Up(data)
    with client_of(up.url()) as client:
        until(lambda: names(client) == {"fake"}, 60)
        command = [*STOKER, "engine", "second", "--engine", "fake", "--model-name", "another", "--data", str(data)]
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        until(lambda: names(client) == {"fake", "another"}, 120)
        assert ask(client, "one", "fake") == "echo: one"
        assert ask(client, "two", "another") == "echo: two"
        second.send_signal(signal.SIGINT)
        said = second.communicate(timeout=120)[0].decode()
        assert second.returncode == 0, said
        until(lambda: names(client) == {"fake"}, 60)
    assert up.end() == 0
    assert left_of(data) == []


def test_a_second_engine_needs_a_service(tmp_path: Path) -> None:
    """Where none runs it says so."""
    command = [*STOKER, "engine", "second", "--engine", "fake", "--data", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 1
    assert "no service runs in" in ran.stderr


def test_a_server_is_given_no_more_than_its_limit(data: Path) -> None:
    """Thirty clients, two servers, two requests at once on each: nobody waits in vain, no server gets a third."""
    with upstream("tiny") as one, upstream("tiny") as two:
        slow_down(one)
        slow_down(two)
        settings = {"STOKER_UPSTREAMS": f"{one.url},{two.url}", "STOKER_UPSTREAM_MAX_CONNECTIONS": "2"}
        settings["STOKER_WAIT_FOR"] = "120"
        up = Up(data, "--engine", "upstream", **settings)
        with client_of(up.url()) as client, ThreadPoolExecutor(30) as pool:
            until(lambda: names(client) == {"tiny"}, 60)
            asked = [pool.submit(ask, client, str(number)) for number in range(30)]
            assert [future.result() for future in asked] == [f"echo: {number}" for number in range(30)]
        assert max(one.most_in_flight, two.most_in_flight) == 2
        assert up.end() == 0
    assert left_of(data) == []


def slow_down(server: Server) -> None:
    """Let each answer take a little."""
    server.answer = lambda _body: Reply(delay=0.1)
