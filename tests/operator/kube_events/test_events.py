"""The Events of a change of status."""

import pytest
from kube_models import as_json
from planning_fixtures import DIGEST, domain, domain_version, observed_domain, run_of

from hmi_api.internal.runs import RunState
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.conditions import Condition, ConditionStatus
from hmi_operator.kubernetes.events import EventMessage, build_event, events_of
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
