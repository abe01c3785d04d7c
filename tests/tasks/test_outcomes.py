"""What an engine is asked for each job of a batch."""

from __future__ import annotations

import json

from models.batches import Claimed, ClaimedJob
from stoker.settings import Settings
from tasks import outcomes
from tasks.engines.refusals import timed_out
from tasks.flights import Flight
from tasks.tokens import Tokens

SETTINGS = Settings(request_timeout=100.0)


def asked(job: ClaimedJob) -> tuple[Flight, outcomes.Request]:
    """Return the flight of a batch of one job, and what its engine is asked."""
    flight = Flight(Claimed("batch_1", "tiny", "realtime", None, [job]), 0.0)
    (request,) = outcomes.requests(flight, SETTINGS, Tokens(SETTINGS))
    return flight, request


def test_a_request_has_all_of_its_job() -> None:
    """Body, lane, model and trace as they are; a time limit that ends a little after the job expires."""
    body = json.dumps({"model": "tiny", "prompt": 'say "stream"'})
    flight, request = asked(ClaimedJob("job_1", "/v1/completions", body, 1, 0, 20.0, trace="00-ab-cd-01"))
    assert (request.id, request.endpoint, request.body) == ("job_1", "/v1/completions", body)
    assert (request.lane, request.model, request.trace) == ("realtime", "tiny", "00-ab-cd-01")
    assert (request.timeout, request.emit, flight.streams) == (30.0, None, {})


def test_who_asks_for_a_stream_gets_one() -> None:
    """Its events are those of this attempt; without an expiry the limit is the service's."""
    flight, request = asked(ClaimedJob("job_1", "/v1/completions", '{"stream": true}', 3, 0, None))
    assert (request.timeout, request.trace) == (100.0, None)
    assert request.emit is not None
    assert [(stream.job_id, stream.attempt) for stream in flight.streams.values()] == [("job_1", 3)]


def late(job: ClaimedJob) -> str:
    """Return how a job ends whose engine gave it up because its time was over."""
    _, request = asked(job)
    return outcomes.settled(timed_out(request), job, SETTINGS).state


def test_a_job_whose_time_is_over_in_the_engine_has_expired() -> None:
    """It is the engine that ends it where no sweeper could: still it expired, it did not fail."""
    assert late(ClaimedJob("job_1", "/v1/completions", "{}", 1, 0, 20.0)) == "expired"
    assert late(ClaimedJob("job_1", "/v1/completions", "{}", 1, 0, 5000.0)) == "failed"
    assert late(ClaimedJob("job_1", "/v1/completions", "{}", 1, 0, None)) == "failed"
