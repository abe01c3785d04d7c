"""A Flask app that is told when a nightly bulk has ended, and fetches its results.

    FOLDER=/srv/nightly flask --app examples/nightly/app.py run --port 9000

It makes its webhook endpoint at the first start, and keeps the secret in its folder. The service has to be allowed to
send to it: STOKER_WEBHOOK_ALLOW_CIDRS=127.0.0.1/32, or the network that it is in.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from flask import Flask, request

from stoker import Client, WebhookVerificationError, verify_webhook

FOLDER = Path(os.environ.get("FOLDER", "."))
URL = os.environ.get("HOOK_URL", "http://127.0.0.1:9000/hook")
EVENTS = ["bulk.completed", "bulk.failed", "bulk.expired", "bulk.cancelled"]

app = Flask(__name__)


def service() -> Client:
    """Return a client of the service."""
    return Client(os.environ.get("STOKER_URL", "http://127.0.0.1:8000"), os.environ.get("STOKER_API_KEY"))


def secret() -> str:
    """Return the secret that signs our events; the endpoint is made when there is none yet."""
    file = FOLDER / "hook-secret"
    if not file.exists():
        with service() as client:
            endpoint = client.webhook_endpoints.create(URL, EVENTS, name="nightly")
        new = file.with_suffix(".new")  # whole or not there: half a secret would refuse every event
        new.touch(mode=0o600)
        new.write_text(endpoint.signing_secret or "")
        new.rename(file)
    return file.read_text()


SECRET = secret()


@app.post("/hook")
def hook() -> tuple[str, int]:
    """Take an event: fetch the results of a bulk of ours.

    They are there before this is answered, and a file is there whole or not at all: whatever dies on the way, the
    event comes again, and finds the file or fetches it.
    """
    try:
        event = verify_webhook(request.get_data(), dict(request.headers), SECRET)
    except WebhookVerificationError:
        return "not from stoker", 400
    with service() as client:
        bulk = client.get_bulk(event["data"]["id"])
        night = str(bulk.metadata.get("nightly"))
        # A name of a file that came from elsewhere: nothing but a date, or a bulk could be written anywhere.
        if re.fullmatch(r"\d{4}-\d\d-\d\d", night) and not (FOLDER / f"{night}.jsonl").exists():
            client.download_results(bulk.id, FOLDER / f"{night}.jsonl")
            app.logger.warning("%s: %s, %s", night, event["type"], bulk.counts)
    return "", 204
