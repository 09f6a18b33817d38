"""The plan for a training process that cannot run or that crashes."""

from datetime import timedelta
from typing import Any

import pytest
from planning_fixtures import (
    ADAPTER_DIGEST,
    DIGEST,
    NOW,
    adapter,
    domain,
    kinds,
    observed_adapter,
    observed_domain,
    reason,
    run_of,
)

from hmi_api.internal.runs import TRAINING_ATTEMPTS, RunFailure, RunState
from hmi_api.resources.common import Resources
from hmi_operator.planning import JobView, PodProblem, plan_adapter, plan_domain
from hmi_operator.planning.actions import ResumeRun, StartRun, StopRun
from hmi_operator.planning.training import BLOCKED_SECONDS

GPU = PodProblem("Unschedulable", "No node takes it.")
MEMORY = PodProblem("OOMKilled", "Raise the limit.")
MORE = Resources(limits={"memory": "8Gi"})


def planned(job: JobView, **spec: Any) -> Any:
    wanted = domain(**spec)
    run = run_of(domain(), DIGEST, RunState.RUNNING)
    return plan_domain(wanted, observed_domain(wanted, run=run, job=job))


def test_a_pod_problem_shows_in_conditions_up_to_training_and_in_ready() -> None:
    plan = planned(JobView(True, queued=True, problem=GPU))
    for type_ in ("CorpusReady", "Trained", "Ready"):
        assert reason(plan.status.conditions, type_) == ("False", "Unschedulable")
    assert reason(plan.status.conditions, "TableBuilt") == ("Unknown", "Waiting")
    assert (plan.status.phase, plan.actions) == ("Pending", ())
    assert plan.requeue_after == BLOCKED_SECONDS


def test_a_pod_problem_shows_in_a_task_adapters_conditions() -> None:
    wanted = adapter()
    run = run_of(wanted, ADAPTER_DIGEST, RunState.PENDING)
    plan = plan_adapter(
        wanted, observed_adapter(wanted, run=run, job=JobView(True, queued=True, problem=GPU))
    )
    assert reason(plan.status.conditions, "Trained") == ("False", "Unschedulable")


def test_a_retried_crash_names_its_cause() -> None:
    plan = planned(JobView(True, crashes=1, queued=True, problem=MEMORY))
    assert plan.status.phase == "Retrying"
    assert reason(plan.status.conditions, "Trained") == ("False", "OOMKilled")


def test_the_last_crash_fails_the_run_with_its_cause() -> None:
    (stop,) = planned(JobView(False, crashes=4, ended_at=NOW, problem=MEMORY)).actions
    assert isinstance(stop, StopRun)
    assert (stop.failure.reason, stop.failure.retryable) == ("OOMKilled", False)


def test_a_final_problem_is_not_retried() -> None:
    late = PodProblem("DeadlineExceeded", "Ask for less.", final=True)
    (stop,) = planned(JobView(False, crashes=1, ended_at=NOW, problem=late)).actions
    assert isinstance(stop, StopRun)
    assert stop.failure.reason == "DeadlineExceeded"


@pytest.mark.parametrize(("seconds", "actions"), [(1, []), (BLOCKED_SECONDS, [ResumeRun])])
def test_a_job_that_was_not_admitted_is_created_again_periodically(
    seconds: float, actions: list[type]
) -> None:
    refused_at = NOW - timedelta(seconds=seconds)
    plan = planned(JobView(False, ended_at=refused_at, problem=PodProblem("QuotaExceeded", "Raise it.")))
    assert kinds(plan.actions) == actions
    assert reason(plan.status.conditions, "Trained") == ("False", "QuotaExceeded")


def test_changed_resources_replace_a_process_that_cannot_start() -> None:
    (stop,) = planned(JobView(True, queued=True, problem=GPU), resources=MORE).actions
    assert isinstance(stop, StopRun)
    assert stop.failure.reason == "Superseded"


def test_changed_resources_do_not_stop_a_running_process() -> None:
    assert planned(JobView(True), resources=MORE).actions == ()


@pytest.mark.parametrize(("resources", "actions"), [(Resources(), []), (MORE, [StartRun])])
def test_a_run_that_ran_out_of_memory_is_retried_with_changed_resources(
    resources: Resources, actions: list[type]
) -> None:
    wanted = domain(resources=resources)
    failure = RunFailure(reason="OOMKilled", message="Raise the limit.")
    run = run_of(domain(), DIGEST, RunState.FAILED, failure=failure, attempt=3)
    observed = observed_domain(wanted, run=run, job=JobView(False, crashes=4, ended_at=NOW))
    assert kinds(plan_domain(wanted, observed).actions) == actions


@pytest.mark.parametrize(("reason", "actions"), [("Superseded", [StartRun]), ("SourceAway", [])])
def test_a_superseded_run_is_started_again_without_a_wait(reason: str, actions: list[type]) -> None:
    failure = RunFailure(reason=reason, message="m", retryable=True)
    run = run_of(domain(), DIGEST, RunState.FAILED, failure=failure, attempt=TRAINING_ATTEMPTS)
    observed = observed_domain(domain(), run=run, job=JobView(False, crashes=1, ended_at=NOW))
    assert kinds(plan_domain(domain(), observed).actions) == actions
