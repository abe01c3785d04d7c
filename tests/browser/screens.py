"""The pictures of the console in the documents: `make screens`, which runs a service under load and looks at its pages.

The hour before, in the overview's charts, was not waited for: what the engine measured in some seconds of load stands
for it, more or less of it from one stretch to the next.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

from models import samples
from models.db import Database
from models.engines import Incarnation
from models.measures import Measures, total
from stoker.settings import load
from tests.browser.console import PHONE, ROOT, WIDE, Service, Window, chromium, service
from tests.tasks.inprocess import until

FOLDER = ROOT / "docs/images"
WIDTH, STRETCHES = 10, 360
"""Seconds of a stretch, and how many of them an hour has."""
ENOUGH = 120
"""Lines that are to have ended before one looks."""
TASKS = ("Summarise the report", "Label the ticket", "Translate the notice", "Answer the customer", "Title the article")
REPLY = (
    "Write to the customer that the parcel was found, that it comes tomorrow before noon, and that we are sorry. " * 3
)


def main(folder: Path) -> None:
    """Write the pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, service(Path(place) / "var", 40) as stoker, chromium() as browser:
        ids = under_load(stoker)
        remember(stoker)
        with stoker.client(stoker.ada) as ada:
            for n in range(90):
                ada.submit(prompt=REPLY, lane="standard" if n % 3 else "realtime")
        window = Window(browser, stoker.url)
        window.log_in(stoker.ada)
        look(window, ids, folder)
        window.close()
        for secret, bulk in ((stoker.bob, ids["filling"]), (stoker.ada, ids["bulk"])):
            with stoker.client(secret) as client:
                client.cancel_bulk(bulk)


def look(window: Window, ids: dict[str, str], folder: Path) -> None:
    """Go through the pages, with a picture of each."""
    page = window.open("/dashboard", "#link.live")
    expect(page.locator("figure canvas").first).to_be_visible()
    expect(page.locator("#failures table")).to_be_visible()
    shoot(page, folder / "console-overview.png")
    window.look("dark", PHONE)
    window.open("/dashboard", "#link.live")
    expect(page.locator("figure canvas").first).to_be_visible()
    shoot(page, folder / "console-phone.png")
    window.look("light", WIDE)
    shoot(window.open(f"/dashboard/jobs/{ids['failed']}", "#error"), folder / "console-job.png")
    window.look("dark", WIDE)
    shoot(window.open(f"/dashboard/bulks/{ids['bulk']}", "#far"), folder / "console-bulk.png")
    window.look("light", WIDE)
    window.open("/dashboard/try")
    page.get_by_label("Prompt").fill(REPLY.strip())
    page.get_by_role("button", name="Stream").click()
    expect(page.locator("#answer")).to_contain_text("sorry. Write")
    shoot(page, folder / "console-try.png")


def shoot(page: Page, file: Path) -> None:
    """Take a picture of what the window shows."""
    page.screenshot(path=file)


def under_load(stoker: Service) -> dict[str, str]:
    """Let two owners hand in work of all kinds, and wait until enough of it has ended."""
    chance = random.Random(1)
    with stoker.client(stoker.ada) as ada, stoker.client(stoker.bob) as bob:
        ada.webhook_endpoints.create(f"{stoker.hooks.url}/tickets", ["job.failed"], name="tickets")
        filling = bob.bulk([task(chance) for _ in range(20_000)], metadata={"run": "nightly"})
        lines = [task(chance) for _ in range(4 * ENOUGH)]
        bulk = ada.bulk([f"[[reject]] {line}" if n % 37 == 5 else line for n, line in enumerate(lines)])
        for n in range(ENOUGH // 2):
            ada.submit(prompt=task(chance), lane="standard" if n % 3 else "realtime", metadata={"team": "support"})
        failed = ada.submit(prompt=f"[[reject]] {task(chance)}", metadata={"team": "support", "ticket": "4711"})
        ada.wait(failed.id, 300)
        until(lambda: ada.get_bulk(bulk.id).counts.done > ENOUGH, 300)
        until(lambda: ada.deliveries.list(job_id=failed.id)[0].state == "delivered", 300)
    return {"bulk": bulk.id, "filling": filling.id, "failed": failed.id}


def task(chance: random.Random) -> str:
    """Return a prompt of some length."""
    return f"{chance.choice(TASKS)} {' '.join(['word'] * chance.randint(8, 60))}"


def remember(stoker: Service) -> None:
    """Write down an hour that is like what the engine measured just now."""
    chance = random.Random(2)
    database = Database(load(data=stoker.up.data).database)
    with database.transaction() as tx:
        known = samples.read(tx, WIDTH, 0)
        # But for the present stretch, which the engine still writes, all of it is written down.
        first = samples.start(WIDTH, samples.clock(tx))
        tx.execute(samples.table.delete().where(samples.table.c.at < first))
        kinds = {(one.model, one.lane) for one in known}
        like = {kind: total(one.measures for one in known if (one.model, one.lane) == kind) for kind in kinds}
        share = WIDTH / like["", ""].open
        before = Incarnation(known[0].engine, "earlier", "fake", "", 0, 0, "")
        for ago in range(1, STRETCHES):
            busy = 0.75 + 0.2 * math.sin(ago / 40) + chance.uniform(-0.05, 0.05)
            then = {kind: changed(one, share, busy) for kind, one in like.items()}
            samples.write(tx, before, WIDTH, first - ago * WIDTH, then)
    database.close()


def changed(measures: Measures, share: float, busy: float) -> Measures:
    """Return a share of what was measured, of an engine that is less busy, and for whom one waits shorter."""
    made = Measures(open=measures.open * share, busy=measures.busy * share * busy)
    sooner = round(8 * (busy - 1))
    for name in ("ended", "errors", "tokens", "sizes"):
        getattr(made, name).update({key: round(n * share * busy) for key, n in getattr(measures, name).items()})
    for name in ("wait", "latency", "first"):
        getattr(made, name).update({key + sooner: n for key, n in getattr(measures, name).items()})
    made.batches, made.padding = sum(made.sizes.values()), measures.padding * share * busy
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
