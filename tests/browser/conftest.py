"""One service and one browser for all that a file of tests looks at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, StorageState

from tests.browser import console


@pytest.fixture(scope="package")
def stoker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[console.Service]:
    """Run a service that has seen something of everything."""
    with console.service(tmp_path_factory.mktemp("console") / "var") as running:
        running.plant()
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Run Chromium."""
    with console.chromium() as running:
        yield running


@pytest.fixture(scope="package")
def login(stoker: console.Service, browser: Browser) -> StorageState:
    """Return the cookies of ada's login."""
    window = console.Window(browser, stoker.url)
    window.log_in(stoker.ada)
    cookies = window.context.storage_state()
    window.close()
    return cookies


@pytest.fixture
def window(stoker: console.Service, browser: Browser, login: StorageState) -> Iterator[console.Window]:
    """Return a window in which ada is logged in; nothing of its pages may go wrong."""
    opened = console.Window(browser, stoker.url, login)
    yield opened
    opened.close()
    assert opened.wrong == []
