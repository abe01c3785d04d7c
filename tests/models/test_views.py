"""What a client sees of its jobs: one, a page, its place in the queue; never those of another owner."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st

from models import ends, jobs, views
from models.db import Database
from models.errors import NotFound
from models.views import Filters
from tests.models import given

TAGS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
ODD = ['quo"te', "back\\slash", "do.t", "$", "sp ace", "[0]", "0", "", "é", "%", ":p", "'", "a\nb", "null"]


def page(
    database: Database, filters: Filters | None = None, *, after: str | None = None, limit: int = 100
) -> tuple[list[str], bool]:
    """Return the ids of a page of alice's jobs, and whether there are more."""
    with database.reading() as tx:
        rows, more = views.page(tx, "alice", filters or Filters(), after=after, limit=limit)
    return [row.id for row in rows], more


def test_a_job_is_shown_with_its_tags_and_result(database: Database) -> None:
    """Everything that the API tells of a job, in one row."""
    batch = given.running(database, given.engine(database), metadata={"team": "a"}, webhook=given.HOOK)
    (job,) = batch.jobs
    with database.reading() as tx:
        row = views.get(tx, "alice", job.id)
    assert (row.state, row.attempts, row.batch_id, row.tags) == ("running", 1, batch.id, {"team": "a"})
    assert (row.status, row.body, row.error_code, row.engine_id) == (None, None, None, None)
    assert row.webhook_url == given.HOOK.url
    given.settled(database, batch.id, [given.answered(job.id)])
    with database.reading() as tx:
        row = views.get(tx, "alice", job.id)
    assert (row.state, row.status, row.body, row.engine_id) == ("succeeded", 200, '{"answer": 1}', "engine")
    assert row.finished_at >= row.started_at >= row.created_at


def test_the_job_of_another_owner_does_not_exist(database: Database) -> None:
    """Nor is it in their list."""
    (job_id,) = given.submitted(database, owner="bob")
    with database.reading() as tx:
        with pytest.raises(NotFound, match="There is no job"):
            views.get(tx, "alice", job_id)
        with pytest.raises(NotFound):
            views.get(tx, "bob", "job_none")
        with pytest.raises(NotFound):
            views.sent(tx, "alice", job_id)
        with pytest.raises(NotFound):
            views.body(tx, "job_none")  # it was deleted since it was looked at
    assert page(database) == ([], False)


@pytest.mark.parametrize("limit", [1, 3, 7, 10])
def test_pages_show_every_job_once_newest_first(database: Database, limit: int) -> None:
    """From page to page by the last id; `more` is true until the end, also when others' jobs lie between."""
    ids = []
    for _ in range(7):
        ids += given.submitted(database)
        given.submitted(database, owner="bob")
    seen: list[str] = []
    after, more = None, True
    while more:
        some, more = page(database, after=after, limit=limit)
        assert len(some) == limit or not more
        seen += some
        after = some[-1]
    assert seen == sorted(ids, reverse=True)


def test_a_list_is_filtered_by_state_lane_and_model(database: Database) -> None:
    """Filters go together; none means all."""
    standard, cancelled = given.submitted(database, 2)
    (bulk,) = given.submitted(database, lane="bulk")
    (other,) = given.submitted(database, model="other", lane="bulk")
    with database.transaction() as tx:
        ends.cancel(tx, "alice", cancelled)
    assert page(database, Filters(state="queued"))[0] == [other, bulk, standard]
    assert page(database, Filters(state="cancelled"))[0] == [cancelled]
    assert page(database, Filters(lane="bulk"))[0] == [other, bulk]
    assert page(database, Filters(lane="bulk", model="fake"))[0] == [bulk]
    assert page(database, Filters(state="succeeded")) == ([], False)


def test_a_list_is_filtered_by_metadata_with_odd_keys(database: Database) -> None:
    """Quotes, dots, dollars, backslashes: a key is a key, whatever a JSON path would make of it."""
    (job_id,) = given.submitted(database, metadata={key: f"value of {key}" for key in ODD})
    given.submitted(database, metadata={"other": "x"})
    given.submitted(database, metadata={})
    given.submitted(database)
    for key in ODD:
        assert page(database, Filters(metadata={key: f"value of {key}"})) == ([job_id], False), key
        assert page(database, Filters(metadata={key: "another"})) == ([], False), key
    assert page(database, Filters(metadata={key: f"value of {key}" for key in ODD})) == ([job_id], False)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@examples(tags=st.dictionaries(TAGS, TAGS, max_size=3), key=TAGS, value=TAGS)
def test_metadata_matches_like_a_dictionary(database: Database, tags: dict[str, str], key: str, value: str) -> None:
    """A job is shown exactly when its tags hold this value under this key."""
    (job_id,) = given.submitted(database, metadata=tags)
    shown, _ = page(database, Filters(metadata={key: value}), limit=1000)
    assert (job_id in shown) == (tags.get(key) == value)


def test_the_queue_position_counts_the_owners_jobs_ahead(database: Database) -> None:
    """In the same lane and model; none when the job is not queued; no further than asked."""
    first, second = (given.submitted(database)[0] for _ in range(2))
    given.submitted(database, owner="bob")
    given.submitted(database, lane="bulk")
    (last,) = given.submitted(database)
    for nth, job_id in enumerate((first, second, last)):
        given.change(database, jobs.table, jobs.table.c.id == job_id, pos=nth)
    with database.transaction() as tx:
        places = [views.queue_position(tx, views.get(tx, "alice", job_id)) for job_id in (first, second, last)]
        assert places == [0, 1, 2]
        assert views.queue_position(tx, views.get(tx, "alice", last), most=1) == 1
        ends.cancel(tx, "alice", first)
        assert views.queue_position(tx, views.get(tx, "alice", first)) is None
        assert views.queue_position(tx, views.get(tx, "alice", last)) == 1


def test_ended_names_jobs_that_need_not_be_waited_for(database: Database) -> None:
    """Those in an end state, and those that are gone."""
    waiting, cancelled = given.submitted(database, 2)
    with database.transaction() as tx:
        ends.cancel(tx, "alice", cancelled)
        assert views.states(tx, [waiting, cancelled, "job_gone"]) == {waiting: "queued", cancelled: "cancelled"}
        assert views.states(tx, []) == {}
