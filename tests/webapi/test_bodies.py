"""The memory of bodies: large ones are counted, and refused when a process holds too many."""

from __future__ import annotations

import io

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient

from webapi import json_body
from webapi.bodies import SMALL, Bodies
from webapi.errors import Problem

LARGE = {"prompt": "x" * (2 * SMALL)}


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> Bodies:
    """Return the account of the application's bodies, with room for a few large ones."""
    made = Bodies(5 * SMALL)
    monkeypatch.setattr(json_body, "_bodies", made)
    return made


def test_a_body_too_many_is_refused(client: FlaskClient, bodies: Bodies) -> None:
    """503 with Retry-After while others are held, before a byte of it is read; small ones always pass."""
    bodies.change(4 * SMALL)
    answer = client.post("/v1/jobs", json=LARGE)
    assert (answer.status_code, answer.json["code"]) == (503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.post("/v1/jobs", json={"prompt": 1}).status_code == 422
    bodies.change(-4 * SMALL)
    assert client.post("/v1/jobs", json=LARGE).status_code != 503


@pytest.mark.parametrize("body", [LARGE, {"prompt": ["x" * 2 * SMALL]}, {"prompt": "x" * 10 * SMALL}])
def test_nothing_is_held_after_the_answer(client: FlaskClient, bodies: Bodies, body: dict[str, object]) -> None:
    """Whatever the answer is; and one body alone is never too much."""
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code != 503
    answer.close()
    assert bodies._held == 0


def test_a_body_is_held_until_the_answer_is_sent(app: Flask, bodies: Bodies) -> None:
    """A request that waits for its job, or streams, keeps what it sent."""
    with app.test_request_context():
        held = bodies.hold(3 * SMALL)
        assert bodies._held == 3 * SMALL
        with pytest.raises(Problem):
            bodies.hold(3 * SMALL)
        answer = held.until_sent(Response())
        answer.close()
        assert bodies._held == 0


def test_a_body_of_unknown_size_is_taken_for_the_largest_until_it_is_read(client: FlaskClient, bodies: Bodies) -> None:
    """A chunked one, that is: refused beside others, and counted by what came of it."""
    bodies.change(1)
    chunked = {"wsgi.input_terminated": True}
    answer = client.post(
        "/v1/jobs",
        input_stream=io.BytesIO(b'{"prompt": 1}'),
        content_type="application/json",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides=chunked,
    )
    assert answer.status_code == 503
    bodies.change(-1)
