"""The scripts and styles of the console: loaded once, compressed, and never an old one on a new page."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from werkzeug.exceptions import NotFound

from webapi.static_files import FOLDER, StaticFiles

PAGES = ("", "/jobs", "/bulks", "/try", "/upload", "/webhooks", "/webhooks/deliveries", "/keys", "/usage", "/nothing")


def test_what_pages_name_is_kept_for_ever(client: FlaskClient) -> None:
    """Each file of each page has its version in its address, its type, and may be kept; a page may not."""
    named = {
        address
        for page in PAGES
        for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', client.get(f"/dashboard{page}").text)
    }
    assert len(named) > 10
    for address in named:
        answer = client.get(address)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
        kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert answer.mimetype == kinds[address.rpartition(".")[2]]


def test_modules_are_imported_by_the_address_of_their_page(client: FlaskClient) -> None:
    """So that they are of the same version, and one module is not loaded twice."""
    imported = [
        name
        for script in (FOLDER / "console").glob("*.js")
        for name in re.findall(r'^import .*?"([^"]+)";$', script.read_text(), re.MULTILINE)
    ]
    assert len(imported) > 5
    assert [name for name in imported if not (name.startswith("./") and (FOLDER / "console" / name).exists())] == []


@pytest.mark.parametrize(("accepts", "is_packed"), [("gzip, br", True), ("gzip;q=0", False), ("", False)])
def test_who_takes_it_compressed_gets_it_so(client: FlaskClient, accepts: str, is_packed: bool) -> None:
    """It is the same file, at a third of the bytes; a cache between keeps both."""
    (address,) = re.findall(r'"(/static/[^"]+/console\.css)"', client.get("/dashboard").text)
    answer = client.get(address, headers={"Accept-Encoding": accepts})
    whole = (FOLDER / "console/console.css").read_bytes()
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert answer.headers.get("Content-Encoding") == ("gzip" if is_packed else None)
    assert (gzip.decompress(answer.data) if is_packed else answer.data) == whole
    assert len(answer.data) < len(whole) / 3 if is_packed else len(answer.data) == len(whole)


def test_what_has_secrets_is_not_compressed(client: FlaskClient) -> None:
    """Pages and answers: their length would tell what stands in them beside what others wrote."""
    for path in ("/dashboard", "/dashboard/keys", "/v1/jobs"):
        assert "Content-Encoding" not in client.get(path, headers={"Accept-Encoding": "gzip"}).headers


def test_another_version_is_served_but_not_kept(client: FlaskClient) -> None:
    """While web servers are changed for newer ones a page of one may ask another; nothing wrong is kept of it."""
    answer = client.get("/static/0123456789abcdef/console/console.css")
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    for path in ("/static/console/nothing.css", "/static/0/../app.py", "/static/0/%2e%2e/app.py", "/static/0/"):
        assert client.get(path).status_code == 404


def test_another_content_is_another_version(tmp_path: Path) -> None:
    """Also a file that changed its name; a name that is not there is a mistake of the page."""
    file = tmp_path / "a.js"
    file.write_text("one")
    first = StaticFiles(tmp_path)
    file.write_text("two")
    second = StaticFiles(tmp_path)
    file.rename(tmp_path / "b.js")
    assert len({first.version, second.version, StaticFiles(tmp_path).version}) == 3
    with pytest.raises(KeyError):
        first.address("b.js")
    with pytest.raises(NotFound):
        first.show(first.version, "b.js")
