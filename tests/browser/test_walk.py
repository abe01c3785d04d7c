"""What an operator does in the console, in a real browser: each way goes from the first page to its end."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, StorageState, expect

from tests.browser.console import Service, Window
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.sqlite, pytest.mark.timeout(300)]

ENDLESS = "[[slow:3600]] go on"
WORDS = " ".join(f"word{number}" for number in range(120))
CUT_OFF = re.compile(r"net::ERR_|status of 50\d")
"""What a browser says when the service is away."""


def job_of(page: Page) -> str:
    """Return the job whose page is open."""
    return page.url.rpartition("/")[2]


def test_log_in_and_out(stoker: Service, browser: Browser) -> None:
    """A wrong key is told so; a right one opens the console, until one logs out."""
    window = Window(browser, stoker.url)
    page = window.open("/dashboard/login", "#key")
    page.keyboard.type("sk-stoker-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This key is not valid")
    assert page.evaluate("() => document.activeElement.id") == "key"
    window.wrong.clear()  # the browser's word for the 401
    window.log_in(stoker.bob)
    expect(page.locator(".who")).to_contain_text("bob")
    page.click("text=Log out")
    expect(page.get_by_label("API key")).to_be_visible()
    window.open("/dashboard/jobs", "#key")
    assert window.wrong == []
    window.close()


def test_why_a_job_failed(stoker: Service, window: Window) -> None:
    """From the overview one click leads to why a job failed, and its metadata to others like it."""
    page = window.open("/dashboard")
    page.locator("#failures").get_by_role("link", name=stoker.ids["failed"]).click()
    expect(page.get_by_role("region", name="Why it failed")).to_contain_text("the prompt asked to be rejected")
    expect(page.locator("#body")).to_contain_text("[[reject]]")
    page.get_by_role("link", name="yes", exact=True).click()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    expect(page.locator("#list")).to_contain_text(stoker.ids["failed"])


def test_who_fills_the_queue(stoker: Service, window: Window) -> None:
    """While the overview is open it shows that bob's jobs wait and run, then that they are gone: without a reload."""
    page = window.open("/dashboard", "#link.live")
    page.evaluate("() => { window.same = true; }")
    first = page.locator("#owners tbody tr").first
    with stoker.client(stoker.bob) as bob:
        bulk = bob.bulk([ENDLESS] * 60)
        expect(first).to_contain_text("bob")
        expect(page.locator("#running")).not_to_have_text("0")
        expect(page.locator("#queue tbody")).to_contain_text("bulk")
        bob.cancel_bulk(bulk.id)
    expect(page.locator("#owners-empty")).to_be_visible()
    expect(page.locator("#waiting")).to_have_text("0")
    assert page.evaluate("() => window.same")


def test_overview_outlives_the_web_server(stoker: Service, window: Window) -> None:
    """While the server is stuck what is shown is said to be old; with the next one the overview goes on by itself."""
    page = window.page
    page.clock.install()
    window.open("/dashboard", "#link.live")
    page.evaluate("() => { window.same = true; }")
    stuck = stoker.up.kill("web", signal.SIGSTOP)
    page.clock.fast_forward(20_000)
    expect(page.locator("#link")).to_have_text("reconnecting")
    expect(page.locator("#age")).to_contain_text("old")
    stoker.up.kill("web")
    until(lambda: stoker.up.pids().get("web") not in {None, stuck}, 120)
    with stoker.client(stoker.ada) as ada:
        job = ada.submit(prompt=ENDLESS)
        expect(page.locator("#running")).to_have_text("1")
        expect(page.locator("#link")).to_have_text("live")
        ada.cancel(job.id)
    expect(page.locator("#running")).to_have_text("0")
    assert page.evaluate("() => window.same")
    window.wrong[:] = [told for told in window.wrong if not CUT_OFF.search(told)]


def test_overview_without_a_stream(window: Window) -> None:
    """That nothing has come yet is said; where a stream is refused, what it tells is asked for instead."""
    page = window.page
    page.clock.install()
    page.route("**/dashboard/live*", lambda _: None)
    window.open("/dashboard")
    page.clock.fast_forward(20_000)
    expect(page.locator("#link")).to_have_text("no answer yet")
    page.unroute("**/dashboard/live*")
    page.route("**/dashboard/live*", lambda asked: asked.fulfill(status=503))
    window.open("/dashboard", "#link.live")
    expect(page.locator("#engines")).to_contain_text("live")
    window.wrong[:] = [told for told in window.wrong if not CUT_OFF.search(told)]


def test_login_that_has_ended(stoker: Service, browser: Browser, login: StorageState) -> None:
    """What one does then says so, and keeps what was typed; the overview leads to the door by itself."""
    window = Window(browser, stoker.url, login)
    page = window.open("/dashboard/try")
    page.get_by_label("Prompt").fill(WORDS)
    window.context.clear_cookies()
    page.get_by_role("button", name="Stream").click()
    expect(page.locator("#answer")).to_contain_text("Your login has ended")
    expect(page.get_by_label("Prompt")).to_have_value(WORDS)
    window.context.add_cookies(login["cookies"])
    page.clock.install()
    window.open("/dashboard", "#link.live")
    window.context.clear_cookies()
    page.locator('input[name="minutes"][value="15"]').check(force=True)
    expect(page.get_by_label("API key")).to_be_visible()
    window.close()


def test_link_of_another_site(stoker: Service, window: Window) -> None:
    """Who is logged in and follows a link in an alert sees its page, not the door."""
    window.page.set_content(f'<a href="{stoker.url}/dashboard/jobs/{stoker.ids["failed"]}">alert</a>')
    window.page.click("text=alert")
    expect(window.page.get_by_role("region", name="Why it failed")).to_be_visible()
    # The page in between has no picture of its own, so the browser looks for one.
    window.wrong[:] = [told for told in window.wrong if "favicon.ico" not in told]


def test_try_streams(window: Window) -> None:
    """The answer to a prompt comes in pieces, with its figures; its job has a page."""
    page = window.open("/dashboard/try")
    page.evaluate("""() => {
      window.lengths = new Set();
      const answer = document.getElementById("answer");
      new MutationObserver(() => lengths.add(answer.textContent.length)).observe(answer, { childList: true });
    }""")
    page.get_by_label("Prompt").fill(WORDS)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#told")).to_have_text("Done.")
    expect(page.locator("#answer")).to_have_text(f"echo: {WORDS}")
    assert page.evaluate("() => lengths.size") > 5
    assert re.fullmatch(r"[0-9.]+ (ms|s)", page.inner_text("#first"))
    assert re.fullmatch(r"[0-9.,]+", page.inner_text("#pace"))
    page.locator("#job a").click()
    expect(page.locator("#now .state").first).to_have_text("succeeded")
    expect(page.locator("#words")).to_have_text(f"echo: {WORDS}")


def test_try_stops(stoker: Service, window: Window) -> None:
    """Stop hangs up, which cancels the job."""
    page = window.open("/dashboard/try")
    page.get_by_label("Prompt").fill(" ".join([WORDS] * 20))
    page.get_by_role("button", name="Stream").click()
    expect(page.locator("#answer")).to_contain_text("word5")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#told")).to_contain_text("Stopped")
    page.locator("#job a").click()
    expect(page.locator("#now .state").first).to_have_text("cancelled")


def test_queued_job_is_followed(window: Window) -> None:
    """A prompt that is queued has a page, which shows its end by itself."""
    page = window.open("/dashboard/try")
    page.get_by_label("Prompt").fill("[[slow:2]] queued")
    page.get_by_role("button", name="Queue it").click()
    page.locator("#job a").click()
    page.wait_for_url("**/dashboard/jobs/*")
    page.evaluate("() => { window.same = true; }")
    expect(page.locator("#now .state").first).to_have_text("succeeded")
    expect(page.locator("#words")).to_contain_text("queued")
    assert page.evaluate("() => window.same")


def test_cancel_and_run_again(stoker: Service, window: Window) -> None:
    """A job that runs is cancelled once that is confirmed, and run again as another one."""
    with stoker.client(stoker.ada) as ada:
        job = ada.submit(prompt=ENDLESS)
        page = window.open(f"/dashboard/jobs/{job.id}")
        expect(page.locator("#now .state").first).to_have_text("running")
        page.once("dialog", lambda asked: asked.dismiss())
        page.get_by_role("button", name="Cancel").click()
        page.once("dialog", lambda asked: asked.accept())
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#now .state").first).to_have_text("cancelled")
        page.get_by_role("button", name="Run again").click()
        page.wait_for_url(lambda url: job.id not in url)
        expect(page.locator("#now .state").first).to_have_text("running")
        expect(page.locator("#body")).to_contain_text(ENDLESS)
        assert ada.cancel(job_of(page)).state == "cancelled"


def test_upload(stoker: Service, window: Window, tmp_path: Path) -> None:
    """A file that is dropped on the page shows how much of it is sent, then its bulk and how that goes on."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n:0900}"}) + "\n" for n in range(300)))
    page = window.open("/dashboard/upload")
    drop(page, tmp_path)
    expect(page.locator("#file-wrong")).to_contain_text("Choose a file, not a folder")
    drop(page, file)
    expect(page.locator("#found")).to_contain_text("prompts.jsonl")
    expect(page.locator("#file-wrong")).to_be_hidden()
    page.get_by_label("Most tokens of an answer").fill("1")
    page.evaluate("""() => {
      window.shares = new Set();
      const bar = document.querySelector("#sent progress");
      new MutationObserver(() => shares.add(bar.value)).observe(bar, { attributes: true });
    }""")
    slow = page.context.new_cdp_session(page)
    speed = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    slow.send("Network.emulateNetworkConditions", speed)
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#bulk")).to_be_visible()
    slow.detach()
    assert [share for share in page.evaluate("() => [...shares]") if 0 < share < 100] != []
    expect(page.locator("#now .state").first).to_have_text("completed")
    with stoker.client(stoker.ada) as ada:
        bulk = page.locator("#made a").inner_text()
        assert ada.get_bulk(bulk).counts.succeeded == 300


def test_upload_that_cannot_be_sent(window: Window, tmp_path: Path) -> None:
    """Of a login that is over, and of a file that is gone by now, the page says what to do; the button stays."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "hi"}\n')
    page = window.open("/dashboard/upload")
    upload = page.get_by_role("button", name="Upload")
    for change, words in (
        (window.context.clear_cookies, "Your login has ended"),
        (file.unlink, "changed or moved after it was chosen"),
    ):
        drop(page, file)
        expect(upload).to_be_enabled()
        change()
        upload.click()
        expect(page.locator("#notices")).to_contain_text(words)
        expect(upload).to_be_enabled()
    window.wrong[:] = [told for told in window.wrong if not re.search(r"ERR_FILE_NOT_FOUND|status of 401", told)]


def drop(page: Page, file: Path) -> None:
    """Drag a file onto the place for it, as a hand does."""
    box = page.locator("#drop").bounding_box()
    assert box is not None
    hand = page.context.new_cdp_session(page)
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    dragged = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for step in ("dragEnter", "dragOver", "drop"):
        hand.send("Input.dispatchDragEvent", {"type": step, **at, "data": dragged})
    hand.detach()


def test_redeliver(stoker: Service, window: Window) -> None:
    """A webhook is found by what it tells, and sent again with the id that it had."""
    page = window.open("/dashboard/webhooks/deliveries")
    page.get_by_label("Job or bulk").fill(stoker.ids["failed"])
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("main tbody tr")).to_have_count(1)
    page.locator("main tbody a").click()
    before = len(stoker.hooks.received)
    page.get_by_role("button", name="Send again").click()
    until(lambda: len(stoker.hooks.received) > before, 60)
    sent = stoker.hooks.received[-1]
    assert stoker.ids["failed"].encode() in sent.body
    assert [came.headers["webhook-id"] for came in stoker.hooks.received].count(sent.headers["webhook-id"]) == 2
    expect(page.locator("main .state").first).to_have_text("delivered")
