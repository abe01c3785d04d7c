"""The console in a real browser: a `stoker up` with the fake engine, two owners, and a Chromium of loopback alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Playwright,
    StorageState,
    expect,
    sync_playwright,
)

from models import keys
from models.db import Database
from stoker.client import Client
from stoker.settings import load
from tests.journeys.running import Up, end_whatever_is_left
from tests.receivers import Receiver, receiver
from tests.tasks.inprocess import until

ROOT = Path(__file__).parents[2]
WIDE, PHONE = (1280, 900), (360, 740)
PATIENCE = 60_000.0
"""Milliseconds that the browser waits for what is asserted."""

expect.set_options(timeout=PATIENCE)

_AXE = Path(__file__).parent / "axe/axe-4.14.1.min.js"
_LOOK = Path(__file__).parent / "look.js"
PLANTED = 5
"""Events that the planted jobs send."""
_FLAGS = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-proxy-server", "--disable-dev-shm-usage")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium. Fails with the words of requirements/browser.sh where there is none."""
    found = subprocess.run(
        ["sh", ROOT / "requirements/browser.sh"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert found.returncode == 0, found.stderr
    flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        yield from _launched(driver, found.stdout.strip(), flags)


def _launched(driver: Playwright, program: str, flags: list[str]) -> Iterator[Browser]:
    browser = driver.chromium.launch(executable_path=program, args=flags)
    try:
        yield browser
    finally:
        browser.close()


class Window:
    """A window of a browser with a login of its own; it remembers what went wrong in its pages."""

    def __init__(self, browser: Browser, url: str, login: StorageState | None = None) -> None:
        self.wrong: list[str] = []
        self.context: BrowserContext = browser.new_context(
            base_url=url,
            viewport={"width": WIDE[0], "height": WIDE[1]},
            color_scheme="light",
            reduced_motion="reduce",
            storage_state=login,
        )
        self.context.set_default_timeout(PATIENCE)
        self.context.set_default_navigation_timeout(PATIENCE)
        self.context.add_init_script(path=_LOOK)
        self.page: Page = self.context.new_page()
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))

    def _note(self, said: ConsoleMessage) -> None:
        # What a policy refuses is an error here too.
        if said.type in {"error", "warning"}:
            self.wrong.append(f"{said.type}: {said.text} {said.location}")

    def close(self) -> None:
        """Close the window."""
        self.context.close()

    def log_in(self, secret: str) -> None:
        """Log in with a key, by the keyboard alone."""
        self.page.goto("/dashboard/login")
        self.page.keyboard.type(secret)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url("**/dashboard")

    def open(self, path: str, shows: str = "main h1") -> Page:
        """Open a page, and wait for what it shows last."""
        self.page.goto(path)
        self.page.wait_for_selector(shows)
        return self.page

    def look(self, scheme: Literal["light", "dark"], size: tuple[int, int]) -> None:
        """Look at the page that is open in other colours and at another width."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": size[0], "height": size[1]})

    def violations(self, *rules: str) -> list[str]:
        """Return what axe finds in the page that is open, by all of its rules or some."""
        if not self.page.evaluate("() => Boolean(window.axe)"):
            self.page.evaluate(_AXE.read_text())
        wanted: dict[str, Any] = {"resultTypes": ["violations"]}
        if rules:
            wanted["runOnly"] = list(rules)
        found = self.page.evaluate("async (wanted) => (await axe.run(document, wanted)).violations", wanted)
        return [
            f"{one['id']}: {node['target']} {node['failureSummary']} {node['html'][:300]}"
            for one in found
            for node in one["nodes"]
        ]

    def too_wide(self) -> list[str]:
        """Return what makes the page scroll sideways."""
        found: list[str] = self.page.evaluate("() => look.wide()")
        return found

    def tabbed(self, most: int = 200) -> list[dict[str, Any]]:
        """Go through the page by the tabulator, to its end; return each thing that had the focus, in that order."""
        self.page.evaluate("() => look.begin()")
        stops: list[dict[str, Any]] = []
        for _ in range(most):
            self.page.keyboard.press("Tab")
            stop = self.page.evaluate("() => look.at()")
            if stop is None or (stops and stop["index"] == stops[0]["index"]):
                break
            # A field for a time has a stop for each of its parts.
            if not stops or stop["index"] != stops[-1]["index"]:
                stops.append(stop)
        return stops

    def usable(self) -> list[dict[str, Any]]:
        """Return what can be used on the page that is open, in the order of its text."""
        found: list[dict[str, Any]] = self.page.evaluate("() => look.usable()")
        return found


class Service:
    """The service that the browser looks at: ada, who may do all, and bob, whose work fills the queue."""

    def __init__(self, up: Up, url: str, hooks: Receiver) -> None:
        self.up, self.url, self.hooks = up, url, hooks
        database = Database(load(data=up.data).database)
        with database.transaction() as tx:
            self.ada = keys.create(tx, "ada", name="the operator's", scopes=keys.SCOPES).secret
            self.bob = keys.create(tx, "bob", name="bob's pipeline").secret
        database.close()
        # What the pages show is of these, by name.
        self.ids: dict[str, str] = {}

    def client(self, secret: str) -> Client:
        """Return a client of an owner."""
        return Client(self.url, secret)

    def plant(self) -> None:
        """Make something of everything that pages show, with names and texts as long and as odd as may be."""
        odd = "<b>&" + "x" * 60
        with self.client(self.ada) as client:
            events = ["job.succeeded", "job.failed"]
            hook = client.webhook_endpoints.create(f"{self.hooks.url}/{'long/' * 20}", events, name="hook")
            done = client.submit(prompt=f"Say hi to {odd}", metadata={"team": odd, "empty": ""})
            failed = client.submit(prompt=f"[[reject]] {odd}", metadata={"nightly": "yes"})
            texts = (f"one {odd}", f"[[reject]] two {odd}", "three")
            bulk = client.bulk([{"prompt": text, "custom_id": text} for text in texts], metadata={"team": odd})
            for job in (done, failed):
                client.wait(job.id, 120)
            client.wait_bulk(bulk.id, 120)
            until(lambda: len(self.hooks.received) >= PLANTED, 120)
            delivery = next(one.id for one in client.deliveries.list(job_id=failed.id))
        self.ids = {"hook": hook.id, "done": done.id, "failed": failed.id, "bulk": bulk.id, "delivery": delivery}


@contextmanager
def service(data: Path, token_ms: int = 20) -> Iterator[Service]:
    """Run a service whose webhooks may reach this machine, and which ends with the block."""
    with receiver() as hooks:
        up = Up(
            data,
            STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.0/8",
            STOKER_FAKE_TOKEN_MS=str(token_ms),
            STOKER_FAKE_SLOTS="16",
        )
        try:
            yield Service(up, up.url(), hooks)
        finally:
            status = up.end()
            end_whatever_is_left(data)
        assert status == 0, "\n".join(up.lines)
