"""Settings that would do harm are refused, in words that name the variable."""

from __future__ import annotations

import re
from base64 import b64encode

import pytest

from models.secrets import valid_secret
from stoker.settings import SettingsError, load

GOOD = "whsec_" + b64encode(b"k" * 32).decode()


def refused(**given: object) -> str:
    """Return what is said of settings that are refused."""
    with pytest.raises(SettingsError) as caught:
        load(**given)
    return str(caught.value)


def test_a_sweep_is_never_so_late_that_it_forgives_everybody() -> None:
    """After a long gap the sweeper spares every lease: a period as long as that would never end one."""
    assert load(sweep_every=5).sweep_every == 5
    assert refused(sweep_every=5.1).startswith("STOKER_SWEEP_EVERY: ")


def test_one_lost_beat_is_no_death() -> None:
    """A batch and an engine both outlast a beat that is lost."""
    assert "STOKER_LEASE" in refused(lease=8)
    assert "STOKER_HEARTBEAT must be at most half of STOKER_ENGINE_GONE_AFTER" in refused(engine_gone_after=9)
    assert load(engine_gone_after=10, lease=10).heartbeat == 5


def test_each_lane_has_its_own_policy() -> None:
    """`fixed` unless another one is set; one that does not exist is refused with those that do."""
    assert {rules.policy for rules in load().lanes.values()} == {"fixed"}
    lanes = load(standard_policy="token_budget", bulk_policy="bucketed").lanes
    assert [rules.policy for rules in lanes.values()] == ["fixed", "token_budget", "bucketed"]
    said = refused(bulk_policy="sorted")
    assert said.startswith("STOKER_BULK_POLICY: ")
    assert "'adaptive'" in said


@pytest.mark.parametrize("secret", ["", GOOD, f"{GOOD} whsec_{b64encode(b'o' * 24).decode()}"])
def test_secrets_that_sign_are_taken(secret: str) -> None:
    """None, one, or the new and the old one while they are changed."""
    assert load(webhook_secret=secret).webhook_secret == secret


@pytest.mark.parametrize(
    "bad",
    [
        "secret",
        "whsec_",
        "whsec_short",
        GOOD.rstrip("="),
        f"{GOOD[:-3]}*{GOOD[-2:]}",
        f"{GOOD}é",
        "whsec_" + b64encode(b"k" * 23).decode(),
        "whsec_" + b64encode(b"k" * 65).decode(),
        GOOD.replace("whsec_", "whsec-"),
    ],
)
def test_a_secret_that_cannot_sign_stops_the_start(bad: str) -> None:
    """No delivery would ever be signed: it is told at once, without the secret, also beside a good one."""
    assert not valid_secret(bad)
    for given in (bad, f"{GOOD} {bad}"):
        said = refused(webhook_secret=given)
        assert re.match(r"STOKER_WEBHOOK_SECRET: .*24 to 64 bytes", said)
        assert bad not in said.replace("whsec_ and", "") or bad in {"secret", "whsec_"}


def test_a_blank_is_no_secret() -> None:
    """Spaces alone are a mistake, not the absence of a secret."""
    assert refused(webhook_secret="  ").startswith("STOKER_WEBHOOK_SECRET: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("database_read_url", "sqlite:///var/stoker.db"), ("broker_url", "redis://127.0.0.1"), ("broker_url", "rabbitmq")],
)
def test_a_replica_and_a_broker_are_of_one_kind(name: str, value: str) -> None:
    """A file has no replica, and Redis has a setting of its own: the start stops, and the line names the variable."""
    with pytest.raises(SettingsError, match=f"^STOKER_{name.upper()}: .*must be"):
        load(**{name: value})
