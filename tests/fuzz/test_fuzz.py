"""Our own OpenAPI document against our own answers: Schemathesis, with all its checks, in process.

Every operation gets what the document allows and what it forbids, alone and in sequences. The ordinary suite looks
briefly; `make fuzz EXAMPLES=200` looks longer.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from flask import Flask
from schemathesis.config import SchemathesisConfig
from schemathesis.core.transport import Response
from schemathesis.engine import Status, events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.transport.wsgi import WSGITransport

from models import keys
from models.db import Database
from stoker.settings import Settings
from tests.fuzz.answering import answering
from webapi.app import create_app
from webapi.context import EXTENSION

EXAMPLES = int(os.environ.get("EXAMPLES") or 0)
SEED = int(os.environ.get("SEED") or 1)
FEW = 3
ALONE = {"stateful": {"enabled": False}}
TOGETHER = {name: {"enabled": False} for name in ("examples", "coverage", "fuzzing")}
SQLITE = pytest.param("sqlite", ALONE, marks=pytest.mark.sqlite, id="alone-sqlite")
POSTGRES = pytest.param("postgres", TOGETHER, marks=pytest.mark.postgres, id="together-postgres")
MORE = [
    pytest.param("postgres", ALONE, marks=pytest.mark.postgres, id="alone-postgres"),
    pytest.param("sqlite", TOGETHER, marks=pytest.mark.sqlite, id="together-sqlite"),
]
BY_DOCUMENT = "positive_data_acceptance"
SAID = (b"Input should be a valid integer", b"was sent twice", b'.[key]"')
"""Numbers are strict, though 30.0 is an integer to a schema; nor can one tell that a form names a field twice; and
flask-openapi leaves `propertyNames` out of the document, which bound the keys of metadata."""
Rule = tuple[str, str | None]
ANY = "any field"
EVERYWHERE: set[Rule] = {
    ("idempotency_key_reused", None),
    ("model_not_found", "model"),
    # The document's numbers are floating point: its last digits are not those of the check.
    ("invalid_request", "seed"),
    ("invalid_value", "seed"),
    ("nul_character", ""),
}
HOOKS: set[Rule] = {("invalid_value", name) for name in ("webhook_url", "webhook.url")} | {
    ("invalid_request", "webhook.secret"),
    ("one_of", "webhook_url"),
}
BY_RULES: dict[str, set[Rule]] = {
    "createBatch": {("invalid_value", "completion_window")},  # a setting
    "createBulk": HOOKS
    | {
        ("empty_file", None),
        ("file_not_found", "file_id"),
        ("input_url_not_allowed", "input_url"),
        ("not_here", "stream"),
        ("one_of", "file_id"),
        ("one_of", "requests"),
        ("invalid_value", "system"),
        ("invalid_value", "webhook.include_result"),
    },
    "createFile": {
        ("invalid_file_format", "file"),  # by the file's name
        ("missing_required_parameter", "expires_after[anchor]"),  # one goes with the other
        ("missing_required_parameter", "expires_after[seconds]"),
    },
    "createJob": HOOKS
    | {("one_of", name) for name in ("prompt", "messages", "input")}
    | {
        ("beside_body", ANY),
        ("missing", "endpoint"),
        ("invalid_value", "endpoint"),
        ("invalid_value", "system"),
        ("streaming_unsupported", "stream"),
    },
    "createWebhookEndpoint": {("invalid_value", "url")},
    "getUsage": {("invalid_value", "from")},  # not behind `to`
    "retryBulk": HOOKS | {("not_here", "stream"), ("nothing_to_retry", None)},
    "updateWebhookEndpoint": {("invalid_value", "url")},
}
"""What a call refuses although its document allows it, as (code, field): rules that a JSON schema cannot tell."""
NOT_MEANT = {
    # GET /v1/deliveries/{delivery_id} takes the same path, for an id that cannot be.
    ("redeliverMany", "allow_header_conformance"),
    # There is a job from the first, and a result when it has one.
    ("getJobResult", "ensure_resource_availability"),
    # An upload that is repeated with its Idempotency-Key has its first answer, also when the file was deleted since.
    *((call, "ensure_resource_availability") for call in ("deleteFile", "getFile", "getFileContent")),
}
"""Checks of one call that find what is meant to be so."""


@pytest.fixture
def key(database: Database) -> str:
    """Return an API key that may do everything."""
    with database.transaction() as tx:
        return keys.create(tx, "fuzzer", scopes=("admin",)).secret


@pytest.fixture
def app(unhurried: None, database: Database, settings: Settings) -> Iterator[Flask]:  # before it
    """Return the application, with an engine that answers at once."""
    made = create_app(settings.model_copy(update={"engine_gone_after": 86_400.0}))
    with answering(database, settings):
        yield made
    made.extensions[EXTENSION].close()


@pytest.fixture(autouse=True)
def _probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mend the tool: its requests without a session hand the application options of a network client."""
    send = WSGITransport.send

    def sent(self: WSGITransport, case: Any, *, session: Any = None, **options: Any) -> Response:
        for name in ("max_redirects", "verify", "cert", "proxies"):
            options.pop(name, None)
        return send(self, case, session=session, **options)

    monkeypatch.setattr(WSGITransport, "send", sent)


class Findings:
    """What the tool found, by operation, check and title, with the first requests that show it."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.found: dict[tuple[str, str, str], list[str]] = {}
        self.broken: list[str] = []

    def read(self, recorder: ScenarioRecorder) -> None:
        """Take in one scenario."""
        for ident, checks in recorder.checks.items():
            for check in checks:
                if check.status is not Status.FAILURE or check.failure_info is None:
                    continue
                failure, operation = check.failure_info.failure, recorder.cases[ident].value.operation
                answer = recorder.interactions[ident].response
                if _is_meant(check.name, operation.definition.raw["operationId"], answer):
                    continue
                title = failure.title
                if answer is not None and check.name == BY_DOCUMENT:
                    title = f"{title}: {_rule(answer)}"
                shown = [failure.message, check.failure_info.code_sample, "" if answer is None else _shown(answer)]
                named = (operation.label, check.name, title)
                self.found.setdefault(named, []).append("\n    ".join(shown))
        for node in recorder.cases.values():
            self.cases[node.value.operation.label] += 1

    def told(self) -> str:
        """Return it all as text."""
        parts = [f"{' / '.join(named)} ({len(found)})\n    {found[0][:3000]}" for named, found in self.found.items()]
        return "\n\n".join([*parts, *self.broken])


def _is_meant(check: str, operation: str, answer: Response | None) -> bool:
    if check == BY_DOCUMENT and answer is not None:
        rule = _rule(answer)
        by_rule = {rule, (rule[0], ANY)} & (BY_RULES.get(operation, set()) | EVERYWHERE)
        return bool(by_rule) or any(said in answer.content for said in SAID)
    return (operation, check) in NOT_MEANT


def _rule(answer: Response) -> tuple[str, str | None]:
    document = json.loads(answer.content)
    if "error" in document:
        return document["error"]["code"], document["error"]["param"]
    fields = document["errors"]
    return document["code"], fields[0]["field"] if fields else None


def _shown(answer: Response) -> str:
    return f"{answer.status_code} {answer.content[:600].decode(errors='replace')}"


def look(app: Flask, key: str, phases: dict[str, Any]) -> Findings:
    """Run the tool over the whole document."""
    config = SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "headers": {"Authorization": f"Bearer {key}"},
            "continue-on-failure": True,
            "generation": {"max-examples": EXAMPLES or FEW, "database": "none"},
            "phases": phases,
        }
    )
    findings = Findings()
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app, config=config)
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            findings.read(event.recorder)
        elif isinstance(event, events.NonFatalError):
            findings.broken.append(f"{event.label}: {event.value}")
        elif isinstance(event, events.FatalError):
            findings.broken.append(repr(event.exception))
    return findings


@pytest.mark.timeout(0 if EXAMPLES else 900)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize(
    ("database_url", "phases"), [SQLITE, POSTGRES, *(MORE if EXAMPLES else [])], indirect=["database_url"]
)
def test_the_document_is_what_the_service_does(
    app: Flask, key: str, phases: dict[str, Any], record_property: Any
) -> None:
    """No operation answers otherwise than its document says, or fails, whatever it is sent."""
    findings = look(app, key, phases)
    record_property("fuzz", f"fuzz: {sum(findings.cases.values())} requests to {len(findings.cases)} operations")
    assert not findings.found, findings.told()
    assert not findings.broken, findings.told()
