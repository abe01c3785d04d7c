"""What clients trust the service with: sealed on its way into the database, and refused when it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from models import bulks, deliveries, jobs, schema
from models.db import Database
from models.sealing import Seal
from stoker.settings import Settings
from tests.webapi.bulk_kit import Service, bad, prompts, taken
from tests.webapi.conftest import End
from webapi.app import StartError, create_app
from webapi.context import EXTENSION, Context

SECRET = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5LWNhbmE="
HOOK = {"url": "https://example.com/hook", "secret": SECRET}


def everything(database: Database) -> str:
    """Return all that is stored, as text."""
    with database.reading() as tx:
        return "\n".join(str(tuple(row)) for table in schema.TABLES for row in tx.execute(sa.select(table)))


def test_the_secret_of_a_job_is_sealed_to_its_delivery(
    client: FlaskClient, context: Context, database: Database, end: End
) -> None:
    """Nowhere in the database does it stand as it came, also after the same request came twice; the sender opens it."""
    for _ in range(2):
        headers = {"Idempotency-Key": "once"}
        made = client.post("/v1/jobs", json={"prompt": "hi", "webhook": HOOK}, headers=headers)
        assert made.status_code == 202
    end(made.json["id"])
    with database.reading() as tx:
        stored = tx.execute(sa.select(jobs.bodies.c.webhook_secret)).scalar_one()
        sent = tx.execute(sa.select(deliveries.table.c.secret)).scalar_one()
    assert context.seal.open(stored) == context.seal.open(sent) == SECRET
    assert stored.startswith("sealed:")
    assert SECRET[6:] not in everything(database)


def test_the_secret_of_a_bulk_is_sealed_to_its_retry(service: Service, context: Context, database: Database) -> None:
    """However its parameters come in; a retry has the secret of the bulk, or its own."""
    old = service.ended(prompts(1), bad, webhook=json.dumps(HOOK))
    taken(service.client.post("/v1/bulks", json={"requests": [{"prompt": "hi"}], "webhook": HOOK}))
    taken(service.do(old, "retry"))
    taken(service.do(old, "retry", json={"webhook": HOOK}))
    with database.reading() as tx:
        stored = tx.execute(sa.select(bulks.table.c.webhook_secret)).scalars().all()
    assert [context.seal.open(secret or "") for secret in stored] == [SECRET] * 4
    assert SECRET[6:] not in everything(database)


@pytest.fixture
def keyless(settings: Settings, tmp_path: Path) -> Iterator[FlaskClient]:
    """Return a client of a service that has no key to seal with."""
    app = create_app(settings.model_copy(update={"secret_key": "", "data": tmp_path / "none"}))
    yield app.test_client()
    app.extensions[EXTENSION].close()


def test_without_a_key_a_secret_is_refused(keyless: FlaskClient, database: Database) -> None:
    """The error tells the operator what to do and nothing is stored; what brings no secret is taken as always."""
    before = everything(database)
    tries = [
        keyless.post("/v1/jobs", json={"prompt": "hi", "webhook": HOOK}),
        keyless.post("/v1/bulks", json={"requests": [{"prompt": "hi"}], "webhook": HOOK}),
    ]
    for refused in tries:
        assert (refused.status_code, refused.json["code"]) == (503, "no_secret_key")
        assert "STOKER_SECRET_KEY" in refused.json["detail"]
        assert SECRET not in refused.text
    assert everything(database) == before
    taken = keyless.post("/v1/jobs", json={"prompt": "hi", "webhook": {"url": HOOK["url"]}})
    assert taken.status_code == 202


def test_a_key_that_is_broken_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    """A service that would refuse every secret, or make cookies that nobody else knows, says so at once."""
    (tmp_path / "secret-key").write_text("nonsense")
    with pytest.raises(StartError, match="secret-key cannot be used"):
        create_app(settings.model_copy(update={"secret_key": "", "data": tmp_path}))


def test_an_older_versions_secret_still_opens(context: Context) -> None:
    """What was stored before there was sealing is used as it is."""
    assert context.seal.open(SECRET) == SECRET
    assert isinstance(context.seal, Seal)
