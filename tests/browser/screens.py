"""The pictures of the console in the documents: `make screens`, an hour of work for a service, and a look at its pages.

What the charts show is what the engine, a fake one, measured in that time; ARGS="--minutes 5" is enough to see how a
page looks.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, expect

from stoker.client import Client
from stoker.progress import working
from tests.browser.console import PHONE, ROOT, WIDE, Service, Window, chromium, service
from tests.tasks.inprocess import until

FOLDER = ROOT / "docs/images"
TOKEN_MS = 40
"""Time of a token: with the fake engine's 16 slots about 10 jobs a second."""
ENOUGH = 120
"""Lines that are to have ended before one looks."""
TASKS = ("Summarise the report", "Label the ticket", "Translate the notice", "Answer the customer", "Title the article")
REPLY = (
    "Write to the customer that the parcel was found, that it comes tomorrow before noon, and that we are sorry. " * 3
)


def main(folder: Path, minutes: float) -> None:
    """Write the pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as place,
        service(Path(place) / "var", TOKEN_MS) as stoker,
        chromium() as browser,
    ):
        with (
            stoker.client(stoker.ada) as ada,
            stoker.client(stoker.bob) as bob,
            working(f"{minutes:g} minutes of load"),
        ):
            hand_in(ada, bob, minutes)
        with working("the last of it"):
            ids = end_of_load(stoker)
        window = Window(browser, stoker.url)
        window.log_in(stoker.ada)
        look(window, ids, folder)
        window.close()
        for secret, name in ((stoker.bob, "filling"), (stoker.ada, "bulk")):
            with stoker.client(secret) as client:
                client.cancel_bulk(ids[name])


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


def hand_in(ada: Client, bob: Client, minutes: float) -> None:
    """Hand in work for some minutes: ada's support desk, busier at times, and now and then a bulk of bob's."""
    chance = random.Random(1)
    began = time.monotonic()
    bulks = iter((0.1, 0.35, 0.7, 2.0))
    due = next(bulks)
    while (far := (time.monotonic() - began) / (60 * minutes)) < 1:
        if far >= due:
            bob.bulk([task(chance) for _ in range(int(60 * minutes))], metadata={"run": "hourly"})
            due = next(bulks)
        for n in range(chance.randint(0, round(4 + 3 * math.sin(12 * far)))):
            prompt = task(chance) if chance.random() > 1 / 250 else f"[[reject]] {task(chance)}"
            ada.submit(prompt=prompt, lane="realtime" if n % 3 == 0 else "standard", metadata={"team": "support"})
        time.sleep(1)


def end_of_load(stoker: Service) -> dict[str, str]:
    """Let bob fill the queue, ada hand in work of all kinds, and wait until enough of it has ended; return the ids."""
    chance = random.Random(2)
    with stoker.client(stoker.ada) as ada, stoker.client(stoker.bob) as bob:
        ada.webhook_endpoints.create(f"{stoker.hooks.url}/tickets", ["job.failed"], name="tickets")
        filling = bob.bulk([task(chance) for _ in range(20_000)], metadata={"run": "nightly"})
        lines = [task(chance) for _ in range(4 * ENOUGH)]
        bulk = ada.bulk([f"[[reject]] {line}" if n % 37 == 5 else line for n, line in enumerate(lines)])
        failed = ada.submit(prompt=f"[[reject]] {task(chance)}", metadata={"team": "support", "ticket": "4711"})
        ada.wait(failed.id, 300)
        until(lambda: ada.get_bulk(bulk.id).counts.done > ENOUGH, 300)
        until(lambda: ada.deliveries.list(job_id=failed.id)[0].state == "delivered", 300)
        for n in range(90):
            ada.submit(prompt=task(chance), lane="standard" if n % 3 else "realtime", metadata={"team": "support"})
    return {"bulk": bulk.id, "filling": filling.id, "failed": failed.id}


def task(chance: random.Random) -> str:
    """Return a prompt of some length."""
    return f"{chance.choice(TASKS)} {' '.join(['word'] * chance.randint(8, 60))}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--minutes", type=float, default=60)
    chosen = parser.parse_args()
    main(chosen.folder, chosen.minutes)
