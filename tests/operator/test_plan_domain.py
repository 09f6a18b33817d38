"""The plan of a Domain, situation by situation."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from planning_fixtures import (
    DIGEST,
    NOW,
    TENANT,
    adapter,
    domain,
    domain_version,
    is_true,
    kinds,
    observed_domain,
    reason,
    run_of,
)

from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import DomainRunSpec, RunFailure, RunProgress, RunState
from hmi_api.names import DomainKey
from hmi_api.resources.common import DataRead, ObjectRef
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.domain import BaseModelRef, Sharing
from hmi_api.resources.spec_changes import domain_run_digest
from hmi_operator.planning import (
    Dependent,
    DomainDependency,
    JobView,
    ObservedDomain,
    plan_domain,
    rejected_status,
)
from hmi_operator.planning.actions import (
    AddFinalizer,
    Declare,
    DeleteContents,
    PublishAgainOrStartRun,
    RemoveFinalizer,
    ResumeRun,
    StartRun,
    StopRun,
)
from hmi_operator.planning.training import MAX_ATTEMPTS, MAX_CRASHES, backoff


def test_the_finalizer_is_added_before_anything_is_created() -> None:
    bare = domain()
    bare.metadata.finalizers.clear()
    assert kinds(plan_domain(bare, observed_domain(bare)).actions) == [AddFinalizer]


def test_a_new_domain_is_declared_and_trained() -> None:
    plan = plan_domain(domain(), ObservedDomain(now=NOW, tenant=TENANT))
    assert kinds(plan.actions) == [Declare, StartRun]
    start = plan.actions[1]
    assert isinstance(start, StartRun)
    assert (start.request.attempt, start.request.spec_digest) == (0, DIGEST)
    assert plan.status.phase == "Pending"


@pytest.mark.parametrize(
    ("parent", "lineage", "expected"),
    [
        (DomainDependency(DomainKey("shop/desk"), None), ("shop/hotel", "shop/desk"), "ParentNotFound"),
        (
            DomainDependency(DomainKey("shop/desk"), domain("desk")),
            ("shop/hotel", "shop/desk", "shop/hotel"),
            "ParentCycle",
        ),
        (
            DomainDependency(
                DomainKey("shop/desk"), domain("desk", base_model=BaseModelRef(uri="wheel://n"))
            ),
            ("shop/hotel", "shop/desk"),
            "ParentBaseDiffers",
        ),
        (
            DomainDependency(DomainKey("shop/desk"), domain("desk", split=2)),
            ("shop/hotel", "shop/desk"),
            "ParentSplitDiffers",
        ),
    ],
)
def test_an_unsuitable_parent_is_refused_with_its_reason(
    parent: DomainDependency, lineage: tuple[DomainKey, ...], expected: str
) -> None:
    child = domain(parent_ref=ObjectRef(name="desk"))
    plan = plan_domain(child, observed_domain(child, parent=parent, lineage=lineage))
    assert reason(plan.status.conditions, "Accepted") == ("False", expected)
    assert reason(plan.status.conditions, "Ready") == ("False", expected)
    assert StartRun not in kinds(plan.actions)


def test_a_cycle_is_named() -> None:
    child = domain(parent_ref=ObjectRef(name="desk"))
    keys = (DomainKey("shop/hotel"), DomainKey("shop/desk"), DomainKey("shop/hotel"))
    parent = DomainDependency(keys[1], domain("desk"))
    plan = plan_domain(child, observed_domain(child, parent=parent, lineage=keys))
    accepted = find_condition(plan.status.conditions, "Accepted")
    assert accepted is not None
    assert "shop/hotel -> shop/desk -> shop/hotel" in accepted.message


def test_a_parent_of_another_namespace_must_be_shared() -> None:
    child = domain(parent_ref=ObjectRef(name="desk", namespace="commons"))
    parent = domain("desk")
    parent.metadata.namespace = "commons"
    for sharing, accepted in (
        (Sharing(), False),
        (Sharing(namespaces=["shop"]), True),
        (Sharing(namespaces=["*"]), True),
    ):
        parent.spec.sharing = sharing
        dependency = DomainDependency(parent.key, parent, domain_version("p"))
        plan = plan_domain(child, observed_domain(child, parent=dependency))
        assert is_true(plan.status.conditions, "Accepted") is accepted


def test_a_child_waits_for_its_parent_and_then_starts_from_its_layers() -> None:
    child = domain(parent_ref=ObjectRef(name="desk"), split=None)
    waiting = DomainDependency(DomainKey("shop/desk"), domain("desk"))
    plan = plan_domain(child, observed_domain(child, parent=waiting))
    assert plan.actions == ()
    assert plan.status.phase == "Waiting"
    assert reason(plan.status.conditions, "CorpusReady") == ("Unknown", "ParentNotReady")
    ready = replace(waiting, current=domain_version("p", layers="sha256:parent"))
    (start,) = plan_domain(child, observed_domain(child, parent=ready)).actions
    assert isinstance(start, StartRun)
    assert isinstance(start.request.spec, DomainRunSpec)
    assert start.request.spec.parent == ready.current
    assert start.request.spec.spec.split == 3
    assert start.request.spec_digest == domain_run_digest(child, "sha256:parent")


@pytest.mark.parametrize("changed", [{"split": 2}, {"base_model": BaseModelRef(uri="wheel://n")}])
def test_an_immutable_field_that_changed_is_refused_and_the_old_version_serves(
    changed: dict[str, Any],
) -> None:
    observed = observed_domain(domain(), current=domain_version(DIGEST))
    plan = plan_domain(domain(**changed), observed)
    assert reason(plan.status.conditions, "Accepted") == ("False", "ImmutableField")
    assert is_true(plan.status.conditions, "Ready")
    assert (plan.status.version, plan.status.phase, plan.actions) == (1, "Degraded", ())


STAGES = [
    ("corpus", "CorpusReady", []),
    ("training", "Trained", ["CorpusReady"]),
    ("table", "TableBuilt", ["CorpusReady", "Trained"]),
    ("publishing", "Published", ["CorpusReady", "Trained", "TableBuilt"]),
]


@pytest.mark.parametrize(("stage", "type_", "done"), STAGES)
def test_the_stage_of_a_run_shows_in_the_conditions(stage: str, type_: str, done: list[str]) -> None:
    progress = RunProgress(stage=stage, step=3, total=9)
    run = run_of(domain(), DIGEST, RunState.RUNNING, progress=progress)
    plan = plan_domain(domain(), observed_domain(domain(), run=run, job=JobView(alive=True)))
    assert plan.actions == ()
    assert reason(plan.status.conditions, type_) == ("Unknown", "Running")
    assert all(is_true(plan.status.conditions, earlier) for earlier in done)
    assert (plan.status.progress, plan.status.run_ref) == (f"{stage} 3/9", "run-1")
    assert plan.requeue_after is not None


@pytest.mark.parametrize(("stage", "type_", "done"), STAGES)
def test_a_failure_is_copied_into_the_condition_of_its_stage(stage: str, type_: str, done: list[str]) -> None:
    failure = RunFailure(reason="BaseModelNotFound", message="Check the uri.")
    progress = RunProgress(stage=stage, step=3, total=9)
    run = run_of(domain(), DIGEST, RunState.FAILED, progress=progress, failure=failure)
    plan = plan_domain(domain(), observed_domain(domain(), run=run))
    found = find_condition(plan.status.conditions, type_)
    assert found is not None
    assert (found.status, found.reason) == ("False", "BaseModelNotFound")
    assert (
        found.message == "Check the uri. To train again, change the spec or the annotation hmi.dev/retrain."
    )
    assert (plan.actions, plan.status.phase) == ((), "Failed")


def test_a_run_that_failed_before_it_read_anything_has_not_read_the_corpus() -> None:
    failure = RunFailure(reason="BaseModelNotFound", message="Check the uri.")
    run = run_of(domain(), DIGEST, RunState.FAILED, failure=failure)
    plan = plan_domain(domain(), observed_domain(domain(), run=run))
    assert reason(plan.status.conditions, "CorpusReady") == ("False", "BaseModelNotFound")
    assert reason(plan.status.conditions, "Trained")[0] == "Unknown"


def test_invalid_rows_set_the_corpus_condition_at_every_stage() -> None:
    failure = RunFailure(reason="RowMalformed", message="Line 7 is no JSON.")
    progress = RunProgress(stage="training", step=3, total=9)
    run = run_of(domain(), DIGEST, RunState.FAILED, progress=progress, failure=failure)
    plan = plan_domain(domain(), observed_domain(domain(), run=run))
    assert reason(plan.status.conditions, "CorpusReady") == ("False", "RowMalformed")


def test_a_run_without_a_process_is_resumed_a_few_times_and_then_failed() -> None:
    run = run_of(domain(), DIGEST, RunState.RUNNING)
    for job in (None, JobView(alive=False, crashes=1, ended_at=NOW - timedelta(hours=1))):
        assert kinds(plan_domain(domain(), observed_domain(domain(), run=run, job=job)).actions) == [
            ResumeRun
        ]
    just_died = JobView(alive=False, crashes=1, ended_at=NOW)
    plan = plan_domain(domain(), observed_domain(domain(), run=run, job=just_died))
    assert plan.actions == ()
    assert plan.requeue_after == backoff(1).total_seconds()
    dead = JobView(alive=False, crashes=MAX_CRASHES, ended_at=NOW)
    (stop,) = plan_domain(domain(), observed_domain(domain(), run=run, job=dead)).actions
    assert isinstance(stop, StopRun)
    assert stop.failure.reason == "ProcessDied"


def test_a_queued_run_is_reported_as_queued() -> None:
    run = run_of(domain(), DIGEST, RunState.PENDING)
    plan = plan_domain(domain(), observed_domain(domain(), run=run, job=JobView(alive=True, queued=True)))
    assert reason(plan.status.conditions, "CorpusReady") == ("Unknown", "Queued")
    assert plan.status.phase == "Pending"


def test_a_retryable_failure_is_retried_with_growing_waits_up_to_a_limit() -> None:
    waits = []
    for attempt in range(MAX_ATTEMPTS):
        failure = RunFailure(reason="StoreAway", message="No answer.", retryable=True)
        run = run_of(domain(), DIGEST, RunState.FAILED, failure=failure, attempt=attempt)
        job = JobView(alive=False, crashes=1, ended_at=NOW)
        plan = plan_domain(domain(), observed_domain(domain(), run=run, job=job))
        assert plan.actions == ()
        if attempt == MAX_ATTEMPTS - 1:
            assert plan.status.phase == "Failed"
            continue
        assert plan.status.phase == "Retrying"
        assert plan.requeue_after is not None
        waits.append(plan.requeue_after)
        later = observed_domain(domain(), run=run, job=job, now=NOW + timedelta(seconds=plan.requeue_after))
        (start,) = plan_domain(domain(), later).actions
        assert isinstance(start, StartRun)
        assert start.request.attempt == attempt + 1
    assert waits == sorted(waits)


@pytest.mark.parametrize("reason", ["SourceAway", "BaseModelSourceAway"])
def test_an_unavailable_data_server_is_retried_without_limit(reason: str) -> None:
    failure = RunFailure(reason=reason, message="It did not answer.", retryable=True)
    for attempt in (MAX_ATTEMPTS, 500):
        run = run_of(domain(), DIGEST, RunState.FAILED, failure=failure, attempt=attempt)
        job = JobView(alive=False, crashes=1, ended_at=NOW)
        plan = plan_domain(domain(), observed_domain(domain(), run=run, job=job))
        assert plan.status.phase == "Retrying"
        assert plan.requeue_after == backoff(attempt + 1).total_seconds()
        later = observed_domain(domain(), run=run, job=job, now=NOW + timedelta(seconds=plan.requeue_after))
        assert kinds(plan_domain(domain(), later).actions) == [StartRun]


def test_the_data_that_was_read_is_in_status_and_conditions() -> None:
    read = DataRead(use="corpus", uri="/c", rows=7, file_count=1, files=["a.jsonl"])
    progress = RunProgress(stage="training", step=1, total=9, data=[read])
    running = run_of(domain(), DIGEST, RunState.RUNNING, progress=progress)
    failed = run_of(
        domain(),
        DIGEST,
        RunState.FAILED,
        failure=RunFailure(reason="RowMalformed", message="Line 2.", data=[read]),
    )
    published = domain_version(DIGEST).model_copy(update={"data": [read]})
    for observed in (
        observed_domain(domain(), run=running, job=JobView(alive=True)),
        observed_domain(domain(), run=failed),
        observed_domain(domain(), current=published),
    ):
        status = plan_domain(domain(), observed).status
        assert status.data == [read]
        if observed.run is not failed:
            found = find_condition(status.conditions, "CorpusReady")
            assert found is not None
            assert found.message == "corpus: 7 rows of 1 files (a.jsonl)."


def test_a_changed_spec_stops_the_old_run_and_starts_another() -> None:
    run = run_of(domain(), "sha256:old", RunState.RUNNING)
    plan = plan_domain(domain(), observed_domain(domain(), run=run, job=JobView(alive=True)))
    assert kinds(plan.actions) == [StopRun, StartRun]


def test_a_change_without_effect_on_the_result_trains_nothing() -> None:
    observed = observed_domain(domain(), current=domain_version(DIGEST))
    shared = domain(sharing=Sharing(namespaces=["*"]), resources={"limits": {"cpu": "2"}})
    assert plan_domain(shared, observed).actions == ()


def test_another_attempt_gets_the_resources_that_were_changed_to_repair_it() -> None:
    killed = RunFailure(reason="OOMKilled", message="It had too little memory.")
    run = run_of(domain(), DIGEST, RunState.FAILED, failure=killed)
    changed = domain(resources={"limits": {"memory": "8Gi"}})
    plan = plan_domain(changed, observed_domain(changed, run=run))
    (request,) = [action.request for action in plan.actions if isinstance(action, StartRun)]
    assert request.spec.spec.resources == changed.spec.resources


def test_the_retrain_annotation_trains_the_same_spec_again() -> None:
    again = domain()
    again.metadata.annotations["hmi.dev/retrain"] = "mended the rows"
    observed = observed_domain(domain(), current=domain_version(DIGEST))
    assert PublishAgainOrStartRun in kinds(plan_domain(again, observed).actions)


def test_suspending_starts_nothing_and_the_published_version_serves() -> None:
    plan = plan_domain(
        domain(suspend=True), observed_domain(domain(suspend=True), current=domain_version("old"))
    )
    assert plan.actions == ()
    assert plan.status.phase == "Suspended"
    assert is_true(plan.status.conditions, "Ready")


def test_deleting_waits_for_dependents() -> None:
    gone = domain()
    gone.metadata.deletion_timestamp = "2026-11-21T12:00:00Z"
    run = run_of(gone, DIGEST, RunState.RUNNING)
    plan = plan_domain(gone, ObservedDomain(now=NOW, tenant=TENANT, run=run))
    assert kinds(plan.actions) == [StopRun, DeleteContents, RemoveFinalizer]
    held = plan_domain(
        gone, ObservedDomain(now=NOW, tenant=TENANT, dependents=(Dependent(adapter(), view_read=False),))
    )
    assert held.actions == ()
    assert reason(held.status.conditions, "Ready") == ("False", "InUse")
    ready = find_condition(held.status.conditions, "Ready")
    assert ready is not None
    assert "TaskAdapter shop/topic" in ready.message


def test_a_refusal_by_the_control_plane_keeps_its_transition_time() -> None:
    error = InvalidInput("NameTaken", "Choose another.")
    first = rejected_status(domain(), plan_domain(domain(), observed_domain(domain())).status, error, NOW)
    again = domain().model_copy(update={"status": first})
    later = NOW + timedelta(hours=1)
    planned = plan_domain(again, observed_domain(again, now=later)).status
    assert rejected_status(again, planned, error, later).conditions == first.conditions
