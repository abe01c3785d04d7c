"""The key of stored secrets: made once, handed to the processes, and shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from models import jobs
from models.db import Database
from models.sealing import Seal, new_key, seal_of
from stoker import checks_queue, doctor, local
from stoker.cli import app
from stoker.finding import Finding
from stoker.service_settings import write_down, written_down
from stoker.services import services
from stoker.settings import Settings, load
from tests.models import given

SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


def stoker(*arguments: object, **environment: str) -> Result:
    """Run the command line."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def test_it_is_made_once(tmp_path: Path) -> None:
    """The same at every start, readable by its owner alone, and found by processes that are started by hand."""
    data = tmp_path / "new"
    first = local.secret_key(data)
    assert local.secret_key(data) == first
    assert (data / "secret-key").stat().st_mode & 0o077 == 0
    assert list(data.iterdir()) == [data / "secret-key"]
    assert seal_of(load(data=data)).open(Seal([first]).close("x")) == "x"


def test_an_upgrade_makes_it_where_the_database_is_the_folders_own(tmp_path: Path, postgres_url: str) -> None:
    """An older `stoker up` that goes on running made none; a database for many machines needs one for all of them."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert stoker("db", "upgrade", "--data", tmp_path / "one").exit_code == 0
    assert (tmp_path / "one/secret-key").exists()
    assert stoker("db", "upgrade", "--data", tmp_path / "two", STOKER_SECRET_KEY=new_key()).exit_code == 0
    assert stoker("db", "upgrade", "--data", tmp_path / "three", "--database-url", postgres_url).exit_code == 0
    assert not list(tmp_path.glob("t*/secret-key"))


def test_keys_that_are_being_replaced_are_all_handed_on(tmp_path: Path) -> None:
    """An operator may write the new key above the old one."""
    old, new = new_key(), new_key()
    (tmp_path / "secret-key").write_text(f"{new}\n{old}\n")
    assert load(secret_key=local.secret_key(tmp_path)).secret_key.split() == [new, old]


@pytest.mark.parametrize("left", ["secret-key.new", "secret-key"])
def test_a_start_that_broke_off_does_not_count(left: str, tmp_path: Path) -> None:
    """A half made file is made anew, with the right permissions: nothing was sealed with it yet."""
    (tmp_path / left).touch(0o644)
    assert len(local.secret_key(tmp_path)) == 44
    assert (tmp_path / "secret-key").stat().st_mode & 0o077 == 0
    assert not (tmp_path / "secret-key.new").exists()


def test_processes_get_it_by_their_environment_alone(tmp_path: Path) -> None:
    """Not by their command, which everybody on the machine can read."""
    key = new_key()
    made = services(load(data=tmp_path, secret_key=key), {}, 9)
    assert {service.environment["STOKER_SECRET_KEY"] for service in made} == {key}
    assert not any(key in word for service in made for word in service.command)
    assert key not in repr(made)


def test_it_is_not_written_down(tmp_path: Path) -> None:
    """Nor is any other secret that nobody needs who looks after the service."""
    (tmp_path / "run").mkdir()
    secrets = {"secret_key": new_key(), "webhook_secret": SECRET, "upstream_api_key": "k3y-of-another"}
    write_down(load(data=tmp_path, port=8123, **secrets))
    text = (tmp_path / "run/settings.json").read_text()
    assert not any(secret in text for secret in secrets.values())
    found = written_down(tmp_path)
    assert found
    assert (found.port, found.secret_key, found.webhook_secret, found.upstream_api_key) == (8123, "", "", "")


def test_the_command_prints_a_new_one(tmp_path: Path) -> None:
    """In the form that STOKER_SECRET_KEY takes, another one each time."""
    first, second = (stoker("keys", "secret-key").stdout.strip() for _ in range(2))
    assert first != second
    assert load(secret_key=f"{first} {second}").secret_key


def test_a_key_is_replaced_by_the_command(sqlite_url: str, tmp_path: Path) -> None:
    """`db reseal` with the new and the old one; then the new one is enough, and what it opens not is told."""
    old, new = new_key(), new_key()
    database = Database(sqlite_url)
    rows = [
        {"job_id": f"job_{n}", "webhook_secret": Seal([old]).close(SECRET), "webhook_include_result": False, "body": ""}
        for n in range(3)
    ]
    with database.transaction() as tx:
        tx.execute(sa.insert(jobs.bodies), rows)
    where = {"STOKER_DATABASE_URL": sqlite_url, "STOKER_DATA": str(tmp_path)}
    refused = stoker("db", "reseal", **where)
    assert refused.exit_code == 1
    assert "STOKER_SECRET_KEY" in refused.stderr
    lost = stoker("db", "reseal", STOKER_SECRET_KEY=new, **where)
    assert lost.exit_code == 1
    assert "3 secrets" in lost.stderr
    done = stoker("db", "reseal", STOKER_SECRET_KEY=f"{new} {old}", **where)
    assert (done.exit_code, done.stdout) == (0, "sealed anew: 3; with the newest key already: 0\n")
    with database.reading() as tx:
        stored = tx.execute(sa.select(jobs.bodies.c.webhook_secret)).scalars().all()
    database.close()
    assert [Seal([new]).open(secret) for secret in stored] == [SECRET] * 3


def found_of(settings: Settings) -> list[Finding]:
    """Return what doctor finds about secrets."""
    return [finding for finding in checks_queue.queue(settings) if finding.check == "secrets"]


def test_doctor_notices_a_wrong_key(database: Database, settings: Settings, tmp_path: Path) -> None:
    """Secrets that no key opens are a problem with what to do; with the right key they are well; none are silence."""
    assert found_of(settings) == []
    given.sealed_endpoint(database, seal_of(settings).close(SECRET))
    assert [finding.status for finding in found_of(settings)] == ["ok"]
    for wrong in (new_key(), ""):
        (finding,) = found_of(settings.model_copy(update={"secret_key": wrong, "data": tmp_path}))
        assert finding.status == "problem"
        assert "STOKER_SECRET_KEY" in finding.do
    (tmp_path / "secret-key").write_text("nonsense")
    (broken,) = found_of(settings.model_copy(update={"secret_key": "", "data": tmp_path}))
    assert (broken.status, "secret-key cannot be used" in broken.says) == ("problem", True)


def test_doctor_tells_no_key() -> None:
    """Whatever a library writes into its messages."""
    keys = [new_key(), new_key()]
    told = Finding("x", "problem", f"with {keys[1]}", f"or {keys[0]}?")
    shown = doctor._without(doctor.secrets_of(load(secret_key=" ".join(keys))), told)
    assert (shown.says, shown.do) == ("with ***", "or ***?")
