"""Every page of the console in a real browser: nothing goes wrong in it, and everybody can read and use it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.browser.console import PHONE, WIDE, Service, Window

pytestmark = [pytest.mark.journey, pytest.mark.sqlite, pytest.mark.timeout(300)]

PAGES = {
    "overview": ("/dashboard", "#link.live"),
    "jobs": ("/dashboard/jobs", "#list table"),
    "a job that failed": ("/dashboard/jobs/{failed}", "#error"),
    "a job that succeeded": ("/dashboard/jobs/{done}", "#words"),
    "no such job": ("/dashboard/jobs/job_0", ".problem"),
    "bulks": ("/dashboard/bulks", "#list table"),
    "a bulk": ("/dashboard/bulks/{bulk}", "#far"),
    "errors of a bulk": ("/dashboard/bulks/{bulk}/errors", "main table"),
    "try": ("/dashboard/try", "#code:not(:empty)"),
    "upload": ("/dashboard/upload", "#upload"),
    "webhooks": ("/dashboard/webhooks", "main table"),
    "an endpoint": ("/dashboard/webhooks/{hook}", "#event_type"),
    "deliveries": ("/dashboard/webhooks/deliveries", "main table"),
    "a delivery": ("/dashboard/webhooks/deliveries/{delivery}", "main table"),
    "keys": ("/dashboard/keys", "main table"),
    "usage": ("/dashboard/usage", "figure canvas"),
}
"""Where it is, and what it shows last."""


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, stoker: Service, window: Window) -> None:
    """It loads without an error and within its policy; in every theme and width all of it can be read and reached."""
    path, shows = PAGES[name]
    window.open(path.format_map(stoker.ids), shows)
    check(window)
    if name == "no such job":
        # The browser says so of every answer that is an error.
        assert [told for told in window.wrong if "status of 404" not in told] == []
        window.wrong.clear()


def test_door(stoker: Service, browser: Browser) -> None:
    """So does the page of who is not logged in."""
    window = Window(browser, stoker.url)
    window.open("/dashboard/jobs", "#key")
    check(window)
    assert window.wrong == []
    window.close()


def check(window: Window) -> None:
    """Look at a page in every way."""
    assert window.violations() == []
    stops, usable = window.tabbed(), window.usable()
    assert [stop["what"] for stop in stops] == [one["what"] for one in usable]
    assert [stop["what"] for stop in stops if not stop["ringed"]] == []
    assert [stop["what"] for stop in stops if not stop["seen"]] == []
    window.look("dark", WIDE)
    assert window.violations("color-contrast") == []
    window.look("dark", PHONE)
    assert window.too_wide() == []
    assert window.violations() == []


def test_checks_find_what_they_look_for(window: Window) -> None:
    """A ring that is not drawn, a wrong order, faint words, a button without a name and too wide a page are found."""
    page = window.open("/dashboard/upload")
    page.evaluate("""() => {
      const faint = Object.assign(document.createElement("p"), { textContent: "faint" });
      faint.style.cssText = "color: #888; background: #999; width: 2000px";
      const bare = document.createElement("button");
      bare.style.outline = "none";
      const far = Object.assign(document.createElement("a"), { href: "/", textContent: "far", tabIndex: 5 });
      document.querySelector("main").append(faint, bare, far);
    }""")
    found = window.violations()
    assert {"button-name", "color-contrast"} <= {one.partition(":")[0] for one in found}
    stops = window.tabbed()
    assert [stop["index"] for stop in stops] != [one["index"] for one in window.usable()]
    assert "<button" in next(stop["what"] for stop in stops if not stop["ringed"])
    assert any("faint" in one for one in window.too_wide())


def test_skip_link(window: Window) -> None:
    """The first stop of the tabulator leads past the navigation, to the content."""
    page = window.open("/dashboard/keys")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "content"
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.closest('main') !== null")


def test_dialog(window: Window) -> None:
    """A dialog opens and closes by the keyboard, which is then where it was."""
    page = window.open("/dashboard/keys")
    opener = page.locator("button[data-opens]").first
    opener.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert page.evaluate("() => document.activeElement.closest('dialog') !== null")
    assert window.violations() == []
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    assert opener.evaluate("(one) => one === document.activeElement")


def test_theme(window: Window) -> None:
    """The theme that was chosen by its button stays, whatever the system's is, also on the next page."""
    page = window.open("/dashboard/keys")
    back = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(back)
    page.click("#theme")
    dark = page.evaluate(back)
    assert dark != light
    window.open("/dashboard/jobs")
    assert page.evaluate(back) == dark
    assert page.get_attribute("#theme", "aria-pressed") == "true"
