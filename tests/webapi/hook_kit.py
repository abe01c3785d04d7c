"""A web application, a sender and a receiver on loopback, for the tests of webhook endpoints and their deliveries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask
from werkzeug.serving import make_server

from models.db import Database
from stoker.settings import Settings
from tasks import webhook


def opened(settings: Settings, **more: Any) -> Settings:
    """Return settings under which webhooks may go to loopback, and are tried again at once."""
    hooks = {"webhook_allow_cidrs": "127.0.0.0/8", "webhook_schedule": "0,0,0", "webhook_timeout": 30.0}
    return settings.model_copy(update=hooks | more)


@contextmanager
def sending(database: Database, settings: Settings) -> Iterator[None]:
    """Send what is due, again and again, as the workers of a service do."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            webhook.deliver_due(database, settings, stopping=stop)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an application on a free port of loopback; yield its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
