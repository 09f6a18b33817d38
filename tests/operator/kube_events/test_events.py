"""The Events of a change of status."""

from datetime import UTC, datetime, timedelta

import pytest
from kube_models import as_json
from planning_fixtures import DIGEST, domain, domain_version, observed_domain, run_of

from hmi_api.internal.runs import RunState
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.conditions import Condition, ConditionStatus
from hmi_api.resources.domain import DomainStatus, RefreshStatus, TableStatus
from hmi_operator.kubernetes.events import (
    RECENT,
    EventMessage,
    build_event,
    events_of,
    recent_table_events,
)
from hmi_operator.planning import JobView, PodProblem, plan_domain

WHEN = "2026-11-21T12:00:00Z"


def status(*conditions: tuple[str, str, str, str]) -> CommonStatus:
    made = [
        Condition(
            type=type_,
            status=ConditionStatus(value),
            reason=reason,
            message=message,
            last_transition_time=WHEN,
        )
        for type_, value, reason, message in conditions
    ]
    return CommonStatus(conditions=made)


ACCEPTED = ("Accepted", "True", "Accepted", "")
RUNNING = ("Trained", "Unknown", "Running", "Run r1 is at work.")
STUCK = ("Trained", "False", "Unschedulable", "No node takes it.")
DONE = ("Trained", "True", "Succeeded", "")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([], [ACCEPTED], [("Normal", "Accepted", "Condition Accepted is True.")]),
        ([ACCEPTED], [ACCEPTED], []),
        ([ACCEPTED], [ACCEPTED, RUNNING], [("Normal", "Running", "Run r1 is at work.")]),
        ([], [ACCEPTED, RUNNING], [("Normal", "Running", "Run r1 is at work.")]),
        (
            [],
            [ACCEPTED, STUCK],
            [
                ("Normal", "Accepted", "Condition Accepted is True."),
                ("Warning", "Unschedulable", "No node takes it."),
            ],
        ),
        ([], [("QuotaAvailable", "True", "NotLimited", "No quota is set.")], []),
        ([RUNNING], [STUCK], [("Warning", "Unschedulable", "No node takes it.")]),
        ([STUCK], [DONE], [("Normal", "Succeeded", "Condition Trained is True.")]),
        ([], [("Published", "Unknown", "Waiting", "Comes after Trained.")], []),
        (
            [RUNNING],
            [("CorpusReady", *STUCK[1:]), STUCK, ("Ready", *STUCK[1:])],
            [("Warning", "Unschedulable", "No node takes it.")],
        ),
        (
            [STUCK],
            [("Trained", "False", "OOMKilled", "Raise the limit.")],
            [("Warning", "OOMKilled", "Raise the limit.")],
        ),
        (
            [RUNNING],
            [("Trained", "Unknown", "Retrying", "It is tried again.")],
            [("Warning", "Retrying", "It is tried again.")],
        ),
        (
            [],
            [("Ready", "False", "Terminating", "It is being deleted.")],
            [("Normal", "Terminating", "It is being deleted.")],
        ),
        ([STUCK], [(*STUCK[:3], "2 nodes do not take it.")], []),
    ],
    ids=[
        "the first",
        "nothing new",
        "work begins",
        "of progress, the last",
        "progress and a problem",
        "what says nothing is silent",
        "it is kept back",
        "it is done",
        "what only waits is silent",
        "one cause is reported once",
        "another cause",
        "a retry",
        "a deletion is no fault",
        "another message alone",
    ],
)
def test_a_changed_condition_makes_one_event(
    old: list[tuple[str, str, str, str]],
    new: list[tuple[str, str, str, str]],
    expected: list[tuple[str, str, str]],
) -> None:
    assert [(one.type, one.reason, one.note) for one in events_of(status(*old), status(*new))] == expected


def test_a_domain_has_one_event_for_each_change_of_its_state() -> None:
    wanted = domain()
    running = observed_domain(wanted, run=run_of(wanted, DIGEST, RunState.RUNNING), job=JobView(True))
    observations = [
        observed_domain(wanted),
        running,
        observed_domain(
            wanted, run=running.run, job=JobView(True, queued=True, problem=PodProblem("OOMKilled", "More."))
        ),
        running,
        observed_domain(wanted, current=domain_version(DIGEST), run=running.run),
    ]
    reasons, before = [], wanted.status
    for observed in observations:
        after = plan_domain(wanted.model_copy(update={"status": before}), observed).status
        reasons += [one.reason for one in events_of(before, after)]
        before = after
    assert reasons == ["Accepted", "Running", "OOMKilled", "Running", "Serving"]


def test_an_event_names_the_resource_and_fits_the_api() -> None:
    resource = domain()
    message = EventMessage("Warning", "OOMKilled", "Raise the limit.")
    body = as_json(build_event(resource, message, "hmi-operator-0"))
    assert body["regarding"]["uid"] == resource.metadata.uid
    assert body["regarding"]["kind"] == "Domain"
    assert body["metadata"]["name"].startswith("hotel.")
    assert body["metadata"]["namespace"] == "shop"


NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def tables(version: int, *kept: int, created: str = WHEN) -> DomainStatus:
    """The status of a Domain whose tables were all refreshed, except for that of version 1."""
    made = [
        TableStatus(
            version=number,
            entries=9,
            created=created,
            **({"cause": "Schedule", "windows_in": 2, "windows_out": 1} if number > 1 else {}),
        )
        for number in kept
    ]
    return DomainStatus(version=version, refresh=RefreshStatus(tables=made))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (tables(1, 1), tables(2, 2, 1), ["TableRefreshed"]),
        (tables(1, 1), tables(2, 1), []),
        (tables(2, 1), tables(2, 2, 1), ["TableRefreshed"]),
        (tables(2, 2, 1), tables(2, 2, 1), []),
        (DomainStatus(version=2), tables(2, 2, 1), []),
        (DomainStatus(version=1), tables(2, 2, 1), ["TableRefreshed"]),
        (DomainStatus(), tables(1, 1), []),
    ],
    ids=[
        "refreshed",
        "the version is known before its table",
        "the table is known after its version",
        "nothing new",
        "refreshes are shown from now on",
        "the first refresh",
        "trained",
    ],
)
def test_each_new_table_has_one_event(old: DomainStatus, new: DomainStatus, expected: list[str]) -> None:
    assert [one.reason for one in events_of(old, new)] == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (tables(2, 2, 1), ["TableRefreshed"]),
        (tables(2, 2, 1, created=(NOW - 2 * RECENT).isoformat()), []),
        (tables(1, 1), []),
        (DomainStatus(version=1), []),
        (tables(2, 2, created="2026-11-21"), []),
        (tables(2, 2, created="soon"), []),
    ],
    ids=["new", "old", "trained", "not refreshed", "no time of day", "no time"],
)
def test_a_new_leader_creates_the_event_of_a_new_table(status: DomainStatus, expected: list[str]) -> None:
    now = NOW + timedelta(minutes=1)
    assert [one.reason for one in recent_table_events(status, now)] == expected


def test_the_event_of_a_table_has_one_name_whoever_creates_it() -> None:
    (message,) = recent_table_events(tables(2, 2, 1), NOW)
    bodies = [as_json(build_event(domain(), message, f"replica-{number}")) for number in range(2)]
    assert bodies[0]["metadata"] == bodies[1]["metadata"]
    (other,) = recent_table_events(tables(3, 3, 2), NOW)
    assert as_json(build_event(domain(), other, "replica-0"))["metadata"] != bodies[0]["metadata"]
