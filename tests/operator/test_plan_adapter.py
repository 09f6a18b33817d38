"""The plan of a TaskAdapter, situation by situation."""

from dataclasses import replace
from typing import Any

import pytest
from planning_fixtures import (
    ADAPTER_DIGEST,
    adapter,
    adapter_version,
    domain,
    domain_version,
    is_true,
    kinds,
    observed_adapter,
    reason,
    run_of,
)

from hmi_api.internal.catalog import EarlierVersion
from hmi_api.internal.runs import RunResult, RunState
from hmi_api.names import DomainKey, Tenant
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.common import DataRead
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.domain import OnMiss
from hmi_api.resources.spec_changes import adapter_run_digest
from hmi_api.resources.task_adapter import Gate, Metric
from hmi_operator.planning import DomainDependency, Environment, plan_adapter
from hmi_operator.planning.actions import PublishAgainOrStartRun, StartRun


def test_an_adapter_waits_for_its_domain() -> None:
    missing = DomainDependency(DomainKey("shop/hotel"), None)
    training = DomainDependency(DomainKey("shop/hotel"), domain())
    for dependency, expected in ((missing, "DomainNotFound"), (training, "DomainNotReady")):
        plan = plan_adapter(adapter(), observed_adapter(adapter(), domain=dependency))
        assert plan.actions == ()
        assert reason(plan.status.conditions, "DomainReady") == ("False", expected)
        assert plan.status.phase == "Waiting"


def test_an_adapter_on_a_published_domain_is_trained_on_its_layers() -> None:
    (start,) = plan_adapter(adapter(), observed_adapter(adapter())).actions
    assert isinstance(start, StartRun)
    assert start.request.spec_digest == ADAPTER_DIGEST


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"task": {"type": "TextGeneration"}}, "TaskTypeUnsupported"),
        ({"serving": {"canary_percent": 5}}, "CanaryUnsupported"),
        ({"task": {"type": "SequenceClassification", "labels": ["a", "b", "a"]}}, "LabelsRepeated"),
        ({"task": {"type": "TokenClassification"}}, "ImmutableField"),
        ({"domain_ref": {"name": "bikes"}}, "ImmutableField"),
    ],
)
def test_an_invalid_spec_is_rejected(spec: dict[str, Any], expected: str) -> None:
    plan = plan_adapter(adapter(**spec), observed_adapter(adapter()))
    assert reason(plan.status.conditions, "Accepted") == ("False", expected)
    assert plan.actions == ()


def test_a_label_of_the_namespace_that_names_no_tenant_is_refused() -> None:
    observed = replace(observed_adapter(adapter()), tenant=Tenant("Acme_Corp"))
    plan = plan_adapter(adapter(), observed)
    assert reason(plan.status.conditions, "Accepted") == ("False", "TenantLabelInvalid")
    (message,) = [said.message for said in plan.status.conditions if said.type == "Accepted"]
    assert "Namespace shop has the label hmi.dev/tenant: 'Acme_Corp'" in message
    assert plan.actions == ()


def test_a_domain_of_another_namespace_must_be_shared() -> None:
    theirs = domain()
    theirs.metadata.namespace = "commons"
    mine = adapter(domain_ref={"name": "hotel", "namespace": "commons"})
    plan = plan_adapter(
        mine, observed_adapter(mine, domain=DomainDependency(theirs.key, theirs, domain_version("d")))
    )
    assert reason(plan.status.conditions, "Accepted") == ("False", "NotShared")


def test_a_gate_that_is_not_reached_leaves_the_old_version_and_its_numbers() -> None:
    result = RunResult(
        artifacts=[], base_digest="b", gate_passed=False, gate_message="accuracy 0.4 is under 0.8."
    )
    run = run_of(adapter(), ADAPTER_DIGEST, RunState.SUCCEEDED, result=result)
    old = adapter_version("sha256:old", version=4)
    plan = plan_adapter(adapter(), observed_adapter(adapter(), run=run, current=old, loaded_on=["r1"]))
    assert plan.actions == ()
    assert reason(plan.status.conditions, "GatePassed") == ("False", "GateNotReached")
    assert is_true(plan.status.conditions, "Ready")
    assert (plan.status.version, plan.status.metrics, plan.status.phase) == (4, {"accuracy": 0.9}, "Degraded")


def test_a_first_version_that_misses_its_gate_shows_its_metrics() -> None:
    result = RunResult(artifacts=[], base_digest="b", gate_passed=False, metrics={"accuracy": 0.4})
    run = run_of(adapter(), ADAPTER_DIGEST, RunState.SUCCEEDED, result=result)
    plan = plan_adapter(adapter(), observed_adapter(adapter(), run=run))
    assert (plan.status.version, plan.status.metrics, plan.status.phase) == (
        None,
        {"accuracy": 0.4},
        "Failed",
    )


@pytest.mark.parametrize(
    ("observed", "type_", "expected", "phase"),
    [
        ({}, "Scheduled", ("False", "NoRuntime"), "NoRuntime"),
        ({"scheduled_on": ["r1"]}, "Loaded", ("Unknown", "Loading"), "Loading"),
        (
            {"scheduled_on": ["r1"], "load_error": "DigestMismatch: train it again"},
            "Loaded",
            ("False", "DigestMismatch"),
            "Failed",
        ),
        (
            {"scheduled_on": ["r1"], "load_error": "HostBudgetFull: give it more"},
            "Loaded",
            ("False", "HostBudgetFull"),
            "Loading",
        ),
        ({"loaded_on": ["r1"]}, "Ready", ("True", "Serving"), "Ready"),
    ],
)
def test_from_published_to_ready(
    observed: dict[str, Any], type_: str, expected: tuple[str, str], phase: str
) -> None:
    gated = adapter(gate=Gate(metric=Metric.ACCURACY, minimum=0.8))
    digest = adapter_run_digest(gated, "sha256:l1", OnMiss.COMPUTE)
    plan = plan_adapter(gated, observed_adapter(gated, current=adapter_version(digest), **observed))
    assert reason(plan.status.conditions, "GatePassed") == ("True", "GatePassed")
    assert reason(plan.status.conditions, type_) == expected
    assert (plan.status.phase, plan.status.domain) == (phase, "hotel/1")


ON_R1 = EarlierVersion(runtime="r1", version=1)
ON_R2 = EarlierVersion(runtime="r2", version=1)


@pytest.mark.parametrize(
    ("observed", "loaded", "message", "ready", "phase"),
    [
        (
            {"scheduled_on": ["r1"], "earlier": [ON_R1]},
            ("Unknown", "Loading"),
            "Version 2 is being fetched by r1. Version 1 serves on r1.",
            ("True", "PreviousVersion"),
            "Updating",
        ),
        (
            {"scheduled_on": ["r1"], "earlier": [ON_R1], "load_error": "DigestMismatch: Train it again."},
            ("False", "DigestMismatch"),
            "Train it again. Version 1 serves on r1.",
            ("True", "PreviousVersion"),
            "Degraded",
        ),
        (
            {"earlier": [ON_R1]},  # it does not fit anywhere any more
            ("Unknown", "Waiting"),
            "Comes after Scheduled. Version 1 serves on r1.",
            ("True", "PreviousVersion"),
            "Updating",
        ),
        (
            {"scheduled_on": ["r1", "r2"], "loaded_on": ["r1"], "earlier": [ON_R2]},
            ("True", "Loaded"),
            "Version 2 is loaded by r1. It is not yet loaded by r2. Version 1 serves on r2.",
            ("True", "Serving"),
            "Ready",
        ),
        (
            {"scheduled_on": ["r1", "r2"], "loaded_on": ["r1"], "load_error": "NoRoom: Give it more."},
            ("True", "Loaded"),
            "Version 2 is loaded by r1. It is not yet loaded by r2: NoRoom: Give it more.",
            ("True", "Serving"),
            "Ready",
        ),
        (
            {"scheduled_on": ["r1"], "loaded_on": ["r1"], "load_error": "TableBudgetFull: Give it more."},
            ("True", "Loaded"),
            "Version 2 is loaded by r1. A runtime serves it on an earlier table of its Domain: "
            "TableBudgetFull: Give it more.",
            ("True", "Serving"),
            "Ready",
        ),
        (
            {"loaded_on": ["r1"]},
            ("True", "Loaded"),
            "Version 2 is loaded by r1.",
            ("True", "Serving"),
            "Ready",
        ),
        (
            {"scheduled_on": ["r1"]},
            ("Unknown", "Loading"),
            "Version 2 is being fetched by r1.",
            ("False", "Loading"),
            "Loading",
        ),
    ],
)
def test_an_earlier_version_serves_until_the_new_one_is_loaded(
    observed: dict[str, Any], loaded: tuple[str, str], message: str, ready: tuple[str, str], phase: str
) -> None:
    current = adapter_version(ADAPTER_DIGEST, version=2)
    plan = plan_adapter(adapter(), observed_adapter(adapter(), current=current, **observed))
    condition = find_condition(plan.status.conditions, "Loaded")
    assert condition is not None
    assert (condition.status.value, condition.reason, condition.message) == (*loaded, message)
    assert reason(plan.status.conditions, "Ready") == ready
    assert (plan.status.phase, plan.status.version) == (phase, 2)


@pytest.mark.parametrize(
    ("observed", "polled"),
    [
        ({"scheduled_on": ["r1"]}, True),
        ({"scheduled_on": ["r1"], "earlier": [ON_R1]}, True),
        ({"scheduled_on": ["r1", "r2"], "loaded_on": ["r1"], "earlier": [ON_R2]}, True),
        ({"loaded_on": ["r1"]}, False),
    ],
)
def test_the_adapter_is_polled_until_no_earlier_version_serves(
    observed: dict[str, Any], polled: bool
) -> None:
    current = adapter_version(ADAPTER_DIGEST, version=2)
    plan = plan_adapter(adapter(), observed_adapter(adapter(), current=current, **observed))
    assert (plan.requeue_after is not None) is polled


def test_new_layers_give_a_new_run_while_the_old_adapter_serves() -> None:
    moved = DomainDependency(
        DomainKey("shop/hotel"), domain(), domain_version("d2", version=2, layers="sha256:l2")
    )
    mine = adapter()
    mine.status.domain = "hotel/1"
    observed = observed_adapter(mine, domain=moved, current=adapter_version(ADAPTER_DIGEST), loaded_on=["r1"])
    plan = plan_adapter(mine, observed)
    assert kinds(plan.actions) == [PublishAgainOrStartRun]
    assert is_true(plan.status.conditions, "Ready")
    assert (plan.status.domain, plan.status.phase) == ("hotel/1", "Updating")


def test_a_refreshed_table_with_the_same_layers_trains_nothing() -> None:
    refreshed = DomainDependency(DomainKey("shop/hotel"), domain(), domain_version("d2", version=2))
    observed = observed_adapter(
        adapter(), domain=refreshed, current=adapter_version(ADAPTER_DIGEST), loaded_on=["r1"]
    )
    plan = plan_adapter(adapter(), observed)
    assert plan.actions == ()
    assert plan.status.domain == "hotel/2"


def test_loaded_is_about_the_version_of_this_generation_only() -> None:
    """Or ``kubectl wait --for=condition=Loaded`` would return while only the version before is loaded."""
    wanted = adapter()
    wanted.metadata.generation = 2
    running = run_of(wanted, ADAPTER_DIGEST, RunState.RUNNING)
    old = adapter_version("sha256:old", version=4)
    plan = plan_adapter(wanted, observed_adapter(wanted, run=running, current=old, loaded_on=["r1"]))
    loaded = find_condition(plan.status.conditions, "Loaded")
    assert loaded is not None
    assert (loaded.status.value, loaded.reason, loaded.observed_generation) == ("Unknown", "Waiting", 2)
    assert loaded.message == "Comes after Scheduled. Version 4 serves on r1."
    assert reason(plan.status.conditions, "Scheduled") == ("Unknown", "Waiting")
    ready = find_condition(plan.status.conditions, "Ready")
    assert ready is not None
    assert (ready.status.value, ready.reason) == ("True", "PreviousVersion")
    assert ready.message == (
        "Version 4 serves; the declared spec has no version yet: Training run run-1 is running."
    )


@pytest.mark.parametrize(("running", "said"), [(0, "No runtime is running"), (2, "No runtime has room")])
def test_the_message_says_whether_any_runtime_is_running(running: int, said: str) -> None:
    observed = observed_adapter(adapter(), current=adapter_version(ADAPTER_DIGEST))
    assert observed.view is not None
    observed = replace(observed, view=observed.view.model_copy(update={"runtimes": running}))
    plan = plan_adapter(adapter(), observed)
    scheduled = find_condition(plan.status.conditions, "Scheduled")
    assert scheduled is not None
    assert scheduled.message.startswith(said)
    assert (plan.status.phase, plan.status.replicas) == ("NoRuntime", 0)


def test_replicas_without_a_runtime_are_reported_and_not_waited_for() -> None:
    wanted = adapter(serving={"replicas": 3})
    observed = observed_adapter(wanted, current=adapter_version(ADAPTER_DIGEST), loaded_on=["r1"])
    plan = plan_adapter(wanted, observed)
    scheduled = find_condition(plan.status.conditions, "Scheduled")
    assert scheduled is not None
    assert scheduled.message == "Placed on r1. 2 of 3 replicas wait for a runtime."
    assert (plan.status.phase, plan.status.replicas) == ("Ready", 1)
    assert reason(plan.status.conditions, "Reconciling") == ("False", "UpToDate")


def test_the_data_of_a_run_a_missed_gate_and_a_version_is_reported() -> None:
    read = DataRead(
        use="train", uri="/t", rows=7, file_count=1, files=["a.jsonl"], labels={"a": 7}, label_count=1
    )
    result = RunResult(artifacts=[], base_digest="sha256:b", gate_passed=False, data=[read])
    digest = ADAPTER_DIGEST
    missed = observed_adapter(adapter(), run=run_of(adapter(), digest, RunState.SUCCEEDED, result=result))
    version = adapter_version(digest).model_copy(update={"data": [read]})
    for observed in (missed, observed_adapter(adapter(), current=version)):
        status = plan_adapter(adapter(), observed).status
        assert status.data == [read]
        found = find_condition(status.conditions, "Trained")
        assert found is not None
        assert found.message == "train: 7 rows of 1 files (a.jsonl); 1 labels (a 7)."


def test_an_adapter_larger_than_the_limits_is_rejected_before_training() -> None:
    wanted = adapter(method={"size": 64})
    environment = Environment(limits=AdapterLimits(max_rank=32))
    plan = plan_adapter(wanted, observed_adapter(wanted, environment=environment))
    assert plan.actions == ()
    assert plan.status.phase == "Failed"
    assert reason(plan.status.conditions, "Accepted") == ("False", "AdapterTooLarge")
    raised = Environment(limits=AdapterLimits(max_rank=64))
    assert kinds(plan_adapter(wanted, observed_adapter(wanted, environment=raised)).actions) == [StartRun]
