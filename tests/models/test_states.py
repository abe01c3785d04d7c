"""The machines of job, batch and bulk: pure, so all their walks can be tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.states import BATCH, BULK, JOB, Machine

MACHINES = pytest.mark.parametrize("machine", [JOB, BATCH, BULK], ids=lambda machine: machine.name)


def reachable(machine: Machine, start: str) -> set[str]:
    """Return every state that some walk from `start` comes through."""
    found, edge = {start}, {start}
    while edge:
        edge = {target for state in edge for target in machine.steps[state]} - found
        found |= edge
    return found


@MACHINES
@given(data=st.data())
def test_a_walk_never_leaves_an_end_state(machine: Machine, data: st.DataObject) -> None:
    """Whatever steps are tried in whatever order, a row that has reached an end state stays in it."""
    state = data.draw(st.sampled_from(sorted(machine.initial)))
    ended = None
    for wanted in data.draw(st.lists(st.sampled_from(sorted(machine.states)), max_size=30)):
        if state in machine.sources(wanted):
            state = wanted
        if ended is not None:
            assert state == ended
        if state in machine.final:
            ended = state


@MACHINES
def test_sources_is_the_inverse_of_steps(machine: Machine) -> None:
    """A state is a source of another exactly when the other is among its steps."""
    for state in machine.states:
        for target in machine.states:
            assert (state in machine.sources(target)) == (target in machine.steps[state])


@MACHINES
def test_every_state_can_be_reached_and_left_for_an_end(machine: Machine) -> None:
    """No state is dead code, and none is a trap: an end can be reached from all of them."""
    assert set().union(*(reachable(machine, state) for state in machine.initial)) == machine.states
    assert all(reachable(machine, state) & machine.final for state in machine.states)


@MACHINES
def test_open_and_final_states_are_all_states(machine: Machine) -> None:
    """Every state is either open or final, and a row begins in an open one."""
    assert machine.open | machine.final == machine.states
    assert not machine.open & machine.final
    assert machine.initial <= machine.open


def test_any_open_job_can_be_cancelled_and_can_expire() -> None:
    """Wherever a job stands, its owner and its time limit can end it."""
    assert JOB.sources("cancelled") == JOB.open
    assert JOB.sources("expired") == JOB.open


def test_only_a_running_job_succeeds_or_fails() -> None:
    """A result can only come from an attempt."""
    assert JOB.sources("succeeded") == JOB.sources("failed") == {"running"}


@MACHINES
def test_a_state_that_does_not_exist_is_named(machine: Machine) -> None:
    """A misspelt state is an error, not an empty set."""
    with pytest.raises(ValueError, match=f"a {machine.name} has no state 'finishd'"):
        machine.sources("finishd")
