"""Invariants of plans in generated situations."""

from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from planning_fixtures import (
    ADAPTER_DIGEST,
    DIGEST,
    NOW,
    adapter,
    adapter_version,
    domain,
    domain_version,
    is_true,
    kinds,
    observed_adapter,
    observed_domain,
    run_of,
)

from hmi_api.internal.catalog import EarlierVersion
from hmi_api.internal.runs import RunFailure, RunProgress, RunResult, RunState, RunView
from hmi_api.names import DomainKey
from hmi_api.resources.conditions import Condition
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning import (
    DomainDependency,
    JobView,
    ObservedAdapter,
    ObservedDomain,
    Plan,
    plan_adapter,
    plan_domain,
)
from hmi_operator.planning.actions import PublishAgainOrStartRun, ResumeRun, StartRun, StopRun
from hmi_operator.planning.training import backoff

FAILURES = st.builds(
    RunFailure, reason=st.sampled_from(["CorpusEmpty", "X"]), message=st.just("m"), retryable=st.booleans()
)
PROGRESS = st.none() | st.builds(
    RunProgress,
    stage=st.sampled_from(
        ["corpus", "teaching", "training", "settling", "table", "evaluation", "publishing", "new"]
    ),
    step=st.integers(0, 5),
    total=st.just(5),
)
JOBS = st.none() | st.builds(
    JobView,
    alive=st.booleans(),
    crashes=st.integers(0, 6),
    ended_at=st.none() | st.integers(0, 1000).map(lambda seconds: NOW - timedelta(seconds=seconds)),
)
OLD_CONDITIONS = st.lists(
    st.sampled_from(["Accepted", "Trained", "Ready", "SomebodyElses"]), unique=True
).map(
    lambda types: [
        Condition(type=type_, status="Unknown", reason="Old", last_transition_time="2026-01-01T00:00:00Z")
        for type_ in types
    ]
)


@st.composite
def runs(draw: st.DrawFn, resource: Domain | TaskAdapter, wanted: str) -> RunView | None:
    if draw(st.booleans()):
        return None
    state = draw(st.sampled_from(list(RunState)))
    changes: dict[str, Any] = {"attempt": draw(st.integers(0, 6)), "progress": draw(PROGRESS)}
    if state is RunState.FAILED:
        changes["failure"] = draw(FAILURES)
    if state is RunState.SUCCEEDED:
        changes["result"] = RunResult(artifacts=[], base_digest="b", gate_passed=draw(st.booleans()))
    return run_of(resource, draw(st.sampled_from([wanted, "sha256:old"])), state, **changes)


@st.composite
def domain_situations(draw: st.DrawFn) -> tuple[Domain, ObservedDomain]:
    wanted = domain(suspend=draw(st.booleans()))
    wanted.status.conditions = draw(OLD_CONDITIONS)
    digest = draw(st.sampled_from([None, DIGEST, "sha256:old"]))
    current = domain_version(digest, version=draw(st.integers(1, 9))) if digest else None
    observed = observed_domain(wanted, current=current, run=draw(runs(wanted, DIGEST)), job=draw(JOBS))
    return wanted, observed


@st.composite
def adapter_situations(draw: st.DrawFn) -> tuple[TaskAdapter, ObservedAdapter]:
    wanted = adapter(suspend=draw(st.booleans()))
    wanted.status.conditions = draw(OLD_CONDITIONS)
    digest = draw(st.sampled_from([None, ADAPTER_DIGEST, "sha256:old"]))
    current = adapter_version(digest, version=draw(st.integers(1, 9))) if digest else None
    dependency = DomainDependency(
        DomainKey("shop/hotel"),
        draw(st.none() | st.just(domain())),
        draw(st.none() | st.just(domain_version("d"))),
    )
    loaded = draw(st.sampled_from([[], ["r1"]]))
    earlier = draw(st.sampled_from([[], [EarlierVersion(runtime="r2", version=1)]]))
    observed = observed_adapter(
        wanted,
        domain=dependency,
        current=current,
        loaded_on=loaded,
        earlier=earlier,
        run=draw(runs(wanted, ADAPTER_DIGEST)),
        job=draw(JOBS),
    )
    return wanted, observed


def sums_up(conditions: list[Condition]) -> bool:
    """Return whether there are Reconciling and Stalled, not both True."""
    return {"Reconciling", "Stalled"} <= set(types(conditions)) and not (
        is_true(conditions, "Reconciling") and is_true(conditions, "Stalled")
    )


def types(conditions: list[Condition]) -> list[str]:
    return [condition.type for condition in conditions]


TRAINING_ACTIONS = {StartRun, PublishAgainOrStartRun, ResumeRun}


def assert_training(plan: Plan[Any], observed: ObservedDomain | ObservedAdapter, digest: str) -> None:
    """Training serves the declared digest only, once at a time, and is never started without need."""
    current, run, acts = observed.current, observed.run, set(kinds(plan.actions))
    assert len([kind for kind in kinds(plan.actions) if kind in TRAINING_ACTIONS]) <= 1
    published = current is not None and current.spec_digest == digest
    if published:
        assert not TRAINING_ACTIONS & acts, "what is published needs no training"
    active = run is not None and run.state in (RunState.PENDING, RunState.RUNNING)
    if active and run is not None and run.spec_digest != digest:
        assert StopRun in acts, "a superseded run is stopped"
    if active and run is not None and run.spec_digest == digest:
        alive = observed.job is not None and observed.job.alive
        if not published and (alive or ResumeRun in acts):
            assert plan.requeue_after is not None, "progress is read again"
        assert not {StartRun, PublishAgainOrStartRun} & acts, "there is one active run for a spec"
    if {StartRun, PublishAgainOrStartRun} & acts:
        assert plan.requeue_after == 0.0, "a new run is observed at once"
    for action in plan.actions:
        if isinstance(action, StartRun | PublishAgainOrStartRun):
            assert action.request.spec_digest == digest
            again = run is not None and run.spec_digest == digest
            assert action.request.attempt == (run.attempt + 1 if again and run is not None else 0)
        if isinstance(action, ResumeRun | StopRun):
            assert run is not None
            assert action.run_id == run.id


@given(domain_situations())
def test_invariants_of_a_domains_plan(situation: tuple[Domain, ObservedDomain]) -> None:
    wanted, observed = situation
    plan = plan_domain(wanted, observed)
    current = observed.view.current if observed.view else None
    assert set(types(wanted.status.conditions)) <= set(types(plan.status.conditions))
    assert len(types(plan.status.conditions)) == len(set(types(plan.status.conditions)))
    assert sums_up(plan.status.conditions)
    assert plan.status.version == (current.version if current else None)
    assert is_true(plan.status.conditions, "Ready") is (current is not None)
    again = wanted.model_copy(update={"status": plan.status})
    assert plan_domain(again, observed).status == plan.status
    up_to_date = current is not None and current.spec_digest == DIGEST
    assert (plan.status.phase == "Ready") is up_to_date
    assert_training(plan, observed, DIGEST)
    if wanted.spec.suspend:
        assert not {StartRun, ResumeRun} & set(kinds(plan.actions))


@given(adapter_situations())
def test_invariants_of_an_adapters_plan(situation: tuple[TaskAdapter, ObservedAdapter]) -> None:
    wanted, observed = situation
    plan = plan_adapter(wanted, observed)
    current = observed.view.current if observed.view else None
    served = bool(observed.view and (observed.view.loaded_on or observed.view.earlier))
    assert set(types(wanted.status.conditions)) <= set(types(plan.status.conditions))
    assert plan.status.version == (current.version if current else None)
    assert is_true(plan.status.conditions, "Ready") is (current is not None and served)
    assert sums_up(plan.status.conditions)
    loaded = bool(
        observed.view and observed.view.loaded_on and current and current.spec_digest == ADAPTER_DIGEST
    )
    if is_true(plan.status.conditions, "Loaded"):
        assert loaded
    if observed.domain.domain is not None and observed.domain.current is not None:
        assert_training(plan, observed, ADAPTER_DIGEST)
    else:
        assert not TRAINING_ACTIONS & set(kinds(plan.actions)), "nothing is trained without its Domain"
    again = wanted.model_copy(update={"status": plan.status})
    assert plan_adapter(again, observed).status == plan.status
    if wanted.spec.suspend:
        assert not {StartRun, ResumeRun} & set(kinds(plan.actions))


@given(st.integers(1, 9), JOBS)
def test_a_resource_that_serves_its_spec_needs_no_action(version: int, job: JobView | None) -> None:
    settled = observed_domain(domain(), current=domain_version(DIGEST, version=version), job=job)
    assert plan_domain(domain(), settled).actions == ()
    serving = observed_adapter(
        adapter(), current=adapter_version(ADAPTER_DIGEST, version=version), loaded_on=["r1"], job=job
    )
    plan = plan_adapter(adapter(), serving)
    assert (plan.actions, plan.requeue_after) == ((), None)


@given(st.integers(0, 10_000))
def test_waits_grow_to_a_limit(failures: int) -> None:
    assert timedelta(0) < backoff(failures) <= backoff(failures + 1) <= timedelta(minutes=5)
