"""What the clients send again, when, and what they make of refusals: decided in one place, without any network."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from stoker import StokerAPIError, calls
from stoker.api_errors import retry_after
from stoker.calls import get_bulk, submit
from stoker.steps import Call, Lost, Outcome, Pause, answered, patiently
from stoker.transfers import upload_of

SUBMIT = submit({"prompt": "hi"}, None)
GET = calls.job("job_1")
CANCEL = calls.cancel_job("job_1")
JOB = {"id": "job_1", "state": "queued", "lane": "bulk", "model": "m", "endpoint": "/", "attempts": 0, "created_at": 1}


def answer(status: int, document: Any = None, **headers: str) -> httpx.Response:
    """Return an answer of the service."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = {"detail": "no", "code": "no"} if document is None else document
    return httpx.Response(status, json=found, headers=named, request=httpx.Request("GET", "http://stoker"))


def lost(error: type[Exception] = httpx.ReadError) -> Lost:
    """Return what comes when the connection breaks."""
    return Lost("http://stoker", error("gone"))


def played(
    call: Call[Any], *outcomes: Outcome | Callable[[], Outcome], procedure: Callable[..., Any] = answered
) -> tuple[Any, list[float]]:
    """Play a procedure with these outcomes; return what it returns or raises, and its pauses."""
    steps = procedure(call)
    coming = list(outcomes)
    pauses: list[float] = []
    outcome = None
    try:
        while True:
            step = steps.send(outcome)
            outcome = None
            if isinstance(step, Pause):
                pauses.append(step.seconds)
            else:
                assert step is call
                found = coming.pop(0)
                outcome = found() if callable(found) else found
    except StopIteration as end:
        return end.value, pauses
    except StokerAPIError as error:
        return error, pauses


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("call", [SUBMIT, GET], ids=["submit", "get"])
def test_what_is_busy_is_asked_again(status: int, call: Call[Any]) -> None:
    """GET, and POST with an Idempotency-Key, are tried again; after longer and longer pauses."""
    job, pauses = played(call, *[answer(status)] * 4, answer(200, JOB))
    assert job.id == "job_1"
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, [0.2, 0.4, 0.8, 1.6], strict=True))


@pytest.mark.parametrize("call", [SUBMIT, GET], ids=["submit", "get"])
def test_a_lost_answer_is_asked_for_again(call: Call[Any]) -> None:
    """A connection that breaks is no end for what may be repeated."""
    assert played(call, lost(), lost(httpx.ReadTimeout), answer(200, JOB))[0].id == "job_1"


@pytest.mark.parametrize("outcome", [answer(503), answer(429, Retry_After="1"), lost(), lost(httpx.ReadTimeout)])
def test_what_may_have_been_done_is_not_sent_twice(outcome: Outcome) -> None:
    """A cancel without an Idempotency-Key is sent once."""
    error, pauses = played(CANCEL, outcome)
    assert isinstance(error, StokerAPIError)
    assert pauses == []


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout])
def test_what_never_went_out_is_sent_again(error: type[Exception]) -> None:
    """Nobody was reached: any request may be sent again."""
    assert played(CANCEL, lost(error), answer(200, JOB))[0].id == "job_1"


def test_the_tries_are_bounded() -> None:
    """After five of them the last refusal is told."""
    error, pauses = played(GET, *[answer(503, {"detail": f"busy {n}", "code": "busy"}) for n in range(5)])
    assert (str(error), error.status, error.code, error.temporary) == ("busy 4", 503, "busy", True)
    assert len(pauses) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422])
def test_a_refusal_for_good_is_told_at_once(status: int) -> None:
    """What the client sent is at fault, and will be next time."""
    error, pauses = played(GET, answer(status))
    assert (error.status, error.temporary, pauses) == (status, False, [])


def test_the_service_has_the_last_word() -> None:
    """`x-should-retry` overrules the status, either way."""
    assert played(GET, answer(503, x_should_retry="false"))[0].status == 503
    assert played(GET, answer(409, x_should_retry="true"), answer(200, JOB))[0].id == "job_1"


def test_a_key_that_is_in_use_is_waited_for() -> None:
    """409 with Retry-After: the first request with this key is still running."""
    assert played(SUBMIT, answer(409, Retry_After="1"), answer(202, JOB))[0].id == "job_1"


def test_retry_after_is_obeyed() -> None:
    """Not a moment sooner than asked, and not much later."""
    _, (pause,) = played(GET, answer(503, Retry_After="3"), answer(200, JOB))
    assert 3.0 <= pause <= 3.3


def test_who_asks_for_long_is_not_asked_again() -> None:
    """More than a minute is the caller's to wait; the error says how long."""
    error, pauses = played(GET, answer(429, Retry_After="3600"))
    assert (error.retry_after, pauses) == (3600.0, [])


def test_retry_after_may_be_a_date() -> None:
    """As HTTP allows; one in the past means now."""
    later = datetime.now(UTC) + timedelta(seconds=20)
    assert 15 < (retry_after(answer(503, Retry_After=format_datetime(later, usegmt=True))) or 0) <= 20
    assert retry_after(answer(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")) == 0


@pytest.mark.parametrize("text", ["", "soon", "-5", "1 hour", "Wed, 99 Oct 2015"])
def test_nonsense_in_retry_after_is_no_wish(text: str) -> None:
    """The usual pause is made."""
    assert retry_after(answer(503, Retry_After=text)) is None


def test_openais_envelope_is_read_too() -> None:
    """Message and code of an error as the OpenAI endpoints tell it."""
    envelope = {"error": {"message": "No such batch", "type": "invalid_request_error", "code": "not_found"}}
    error, _ = played(GET, answer(404, envelope, X_Request_Id="req_1"))
    assert (str(error), error.code, error.request_id) == ("No such batch", "not_found", "req_1")


@pytest.mark.parametrize("document", [[], "text", {"error": "text"}, {"detail": None}])
def test_any_refusal_is_told(document: Any) -> None:
    """Whatever a proxy answers: its status at least."""
    assert "502 Bad Gateway" in str(played(CANCEL, answer(502, document))[0])


@pytest.mark.parametrize("document", [[], {}, {"id": "x"}, "text", None])
def test_an_answer_that_is_not_stokers_is_an_error(document: Any) -> None:
    """Some other server at that address: told as such, not as a traceback."""
    error, _ = played(GET, httpx.Response(200, json=document, request=httpx.Request("GET", "http://other")))
    assert isinstance(error, StokerAPIError)
    assert "does not answer as stoker does" in str(error)


def test_an_upload_that_cannot_be_read_again_is_sent_once() -> None:
    """Lines of a generator are gone once they are sent, unless they were never sent."""
    call = calls.bulk(iter(["hi"]), {}, None)
    assert played(call, answer(503))[0].status == 503
    assert played(call, lost(httpx.ConnectError), answer(202, {"id": "b", "state": "running"}))[0].id == "b"
    assert upload_of(["hi"]).repeatable


def test_a_wait_outlasts_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is away for a while is asked until it is back, or the patience is over."""
    clock = [0.0]
    monkeypatch.setattr("stoker.steps.time.monotonic", lambda: clock[0])
    call = get_bulk("b")

    def away() -> Lost:
        clock[0] += 1
        return lost(httpx.ConnectError)

    patient = lambda call: patiently(call, 60)  # noqa: E731  # short
    bulk, _ = played(
        call, *[away() for _ in range(30)], answer(200, {"id": "b", "state": "running"}), procedure=patient
    )
    assert bulk.id == "b"
    clock[0] = 0.0

    error, _ = played(call, *[away] * 100, procedure=patient)
    assert str(error) == "http://stoker does not answer: gone"
    assert 60 <= clock[0] <= 70


def test_parameters_of_a_bulk_go_as_the_service_reads_them() -> None:
    """Texts as they are, all else as JSON; a text that would be read as JSON is written as JSON itself."""
    params = {"model": "m", "temperature": 0.5, "stop": ["a"], "seed": None, "user": "5", "metadata": {"run": "7"}}
    call = calls.bulk([], params, "k")
    assert call.options["params"] == {
        "model": "m",
        "temperature": "0.5",
        "stop": '["a"]',
        "user": '"5"',
        "metadata.run": "7",
    }
    assert call.options["headers"] == {"Idempotency-Key": "k"}


@pytest.mark.parametrize("name", ["../keys", "a/b", "a?b", "a#b", ".."])
def test_an_id_leads_nowhere_else(name: str) -> None:
    """Whatever a caller passes as an id is one part of the path."""
    path = httpx.URL("http://stoker").join(get_bulk(name).path).raw_path.decode()
    assert path.startswith("/v1/bulks/")
    assert path.count("/") == 3
    assert "?" not in path
    assert "#" not in path
