"""The kstatus of a resource in all its states, as Flux and other tools read it."""

from typing import Any

import pytest
from planning_fixtures import (
    ADAPTER_DIGEST,
    DIGEST,
    NOW,
    adapter,
    adapter_version,
    domain,
    domain_version,
    observed_adapter,
    observed_domain,
    run_of,
)
from support_kstatus import Health, health_of

from hmi_api.errors import InvalidInput
from hmi_api.internal.catalog import EarlierVersion
from hmi_api.internal.runs import RunFailure, RunResult, RunState
from hmi_api.names import DomainKey
from hmi_api.resources.common import dump
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning import (
    DomainDependency,
    Environment,
    JobView,
    Plan,
    PodProblem,
    plan_adapter,
    plan_domain,
    rejected_status,
)

FAILURE = RunFailure(reason="CorpusEmpty", message="There is no text.")
PASSING = RunFailure(reason="ControlPlaneUnavailable", message="It is away.", retryable=True)
MISSED = RunResult(artifacts=[], base_digest="b", gate_passed=False, gate_message="0.4 is under 0.8.")
ENDED = JobView(False, ended_at=NOW)
DELETED = "2026-11-21T11:00:00Z"


def health(resource: Domain | TaskAdapter, status: Any) -> Health:
    manifest = dump(resource.model_copy(update={"status": status}))
    generation = manifest["metadata"]["generation"]
    assert manifest["status"]["observedGeneration"] == generation
    spoken = {one["type"]: one.get("observedGeneration") for one in manifest["status"]["conditions"]}
    assert spoken["Ready"] == spoken["Reconciling"] == spoken["Stalled"] == generation
    return health_of(manifest)


def adapter_run(state: RunState, **changes: Any) -> Any:
    return run_of(adapter(), ADAPTER_DIGEST, state, **changes)


NEW, OLD = adapter_version(ADAPTER_DIGEST, version=2), adapter_version("sha256:old")
R2_OLD = EarlierVersion(runtime="r2", version=1)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ({"domain": DomainDependency(DomainKey("shop/hotel"), None)}, "InProgress"),
        ({"domain": DomainDependency(DomainKey("shop/hotel"), domain())}, "InProgress"),
        ({}, "InProgress"),
        ({"run": adapter_run(RunState.RUNNING), "job": JobView(True)}, "InProgress"),
        (
            {
                "run": adapter_run(RunState.PENDING),
                "job": JobView(True, queued=True, problem=PodProblem("Unschedulable", "No node takes it.")),
            },
            "InProgress",
        ),
        ({"run": adapter_run(RunState.FAILED, failure=PASSING), "job": ENDED}, "InProgress"),
        ({"run": adapter_run(RunState.FAILED, failure=FAILURE)}, "Failed"),
        ({"run": adapter_run(RunState.SUCCEEDED, result=MISSED)}, "Failed"),
        ({"current": NEW}, "InProgress"),
        ({"current": NEW, "scheduled_on": ["r1"]}, "InProgress"),
        ({"current": NEW, "scheduled_on": ["r1"], "load_error": "HostBudgetFull: m"}, "InProgress"),
        ({"current": NEW, "scheduled_on": ["r1"], "load_error": "BaseModelSourceAway: m"}, "InProgress"),
        ({"current": NEW, "scheduled_on": ["r1"], "load_error": "AdapterTooLarge: m"}, "Failed"),
        ({"current": NEW, "loaded_on": ["r1"]}, "Current"),
        ({"current": NEW, "scheduled_on": ["r1", "r2"], "loaded_on": ["r1"]}, "InProgress"),
        ({"current": NEW, "loaded_on": ["r1"], "earlier": [R2_OLD]}, "InProgress"),
        # The version before serves, and so Ready is True:
        ({"current": OLD, "loaded_on": ["r1"]}, "InProgress"),
        (
            {"current": OLD, "loaded_on": ["r1"], "run": adapter_run(RunState.FAILED, failure=FAILURE)},
            "Failed",
        ),
        (
            {"current": OLD, "loaded_on": ["r1"], "run": adapter_run(RunState.SUCCEEDED, result=MISSED)},
            "Failed",
        ),
        ({"current": NEW, "scheduled_on": ["r2"], "earlier": [R2_OLD]}, "InProgress"),
    ],
    ids=[
        "its Domain is missing",
        "its Domain is not published",
        "training starts",
        "training",
        "no node takes the training pod",
        "a passing failure",
        "a lasting failure",
        "the gate is missed",
        "no runtime takes it",
        "it is being loaded",
        "it waits for room",
        "its base model's hub is away",
        "it cannot be loaded",
        "it serves",
        "one of two runtimes has it",
        "one of two runtimes has the version before",
        "a change is being trained",
        "a change failed",
        "a change missed its gate",
        "a change is being loaded",
    ],
)
def test_the_health_of_a_task_adapter(observed: dict[str, Any], expected: Health) -> None:
    wanted = adapter()
    wanted.metadata.generation = 3
    assert health(wanted, plan_adapter(wanted, observed_adapter(wanted, **observed)).status) == expected


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ({"run": run_of(domain(), DIGEST, RunState.RUNNING), "job": JobView(True)}, "InProgress"),
        ({"run": run_of(domain(), DIGEST, RunState.FAILED, failure=FAILURE)}, "Failed"),
        ({"current": domain_version(DIGEST)}, "Current"),
        ({"current": domain_version("sha256:old")}, "InProgress"),
    ],
    ids=["training", "failed", "published", "changed"],
)
def test_the_health_of_a_domain(observed: dict[str, Any], expected: Health) -> None:
    wanted = domain()
    wanted.metadata.generation = 3
    assert health(wanted, plan_domain(wanted, observed_domain(wanted, **observed)).status) == expected


def test_a_parent_that_is_not_applied_yet_is_waited_for_and_one_of_another_base_is_not() -> None:
    child = domain("suite", parent_ref={"name": "hotel"})
    missing = DomainDependency(DomainKey("shop/hotel"), None)
    other = DomainDependency(DomainKey("shop/hotel"), domain(base_model={"uri": "wheel://other"}))
    for parent, expected in ((missing, "InProgress"), (other, "Failed")):
        plan = plan_domain(child, observed_domain(child, parent=parent))
        assert health(child, plan.status) == expected


def test_a_rejected_resource_is_failed_whichever_part_rejects_it() -> None:
    wanted = adapter(serving={"canary_percent": 5})
    assert health(wanted, plan_adapter(wanted, observed_adapter(wanted)).status) == "Failed"
    error = InvalidInput("NameTaken", "Rename it.")
    planned = plan_adapter(adapter(), observed_adapter(adapter())).status
    assert health(adapter(), rejected_status(adapter(), planned, error, NOW)) == "Failed"


@pytest.mark.parametrize("wanted", [adapter(), domain()], ids=["TaskAdapter", "Domain"])
def test_a_resource_in_an_excluded_namespace_is_rejected_and_starts_nothing(wanted: Any) -> None:
    around = Environment(excluded=frozenset({"shop"}))
    if isinstance(wanted, Domain):
        plan: Plan[Any] = plan_domain(wanted, observed_domain(wanted, environment=around))
    else:
        plan = plan_adapter(wanted, observed_adapter(wanted, environment=around))
    accepted = find_condition(plan.status.conditions, "Accepted")
    assert accepted is not None
    assert (accepted.status.value, accepted.reason) == ("False", "NamespaceExcluded")
    assert "namespace shop" in accepted.message
    assert (plan.actions, health(wanted, plan.status)) == ((), "Failed")


def test_a_suspended_change_is_current_while_the_previous_version_serves() -> None:
    wanted = adapter(suspend=True)
    plan = plan_adapter(wanted, observed_adapter(wanted, current=OLD, loaded_on=["r1"]))
    assert health(wanted, plan.status) == "Current"
    reconciling = find_condition(plan.status.conditions, "Reconciling")
    assert reconciling is not None
    assert (reconciling.status.value, reconciling.reason) == ("False", "Suspended")


def test_the_status_of_a_deleted_resource_has_the_deletions_generation() -> None:
    wanted = adapter()
    wanted.metadata.deletion_timestamp, wanted.metadata.generation = DELETED, 4
    assert health(wanted, plan_adapter(wanted, observed_adapter(adapter())).status) == "Terminating"
