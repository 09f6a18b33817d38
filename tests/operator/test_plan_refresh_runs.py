"""What is done about the runs of a refresh, and about a rollback of the table."""

from dataclasses import replace

import pytest
from planning_fixtures import NOW, kinds, reason
from refresh_fixtures import BY_MISSES, DAILY, EARLIER, after, ran, run_view, seen, started, table, wanted

from hmi_api.internal.runs import RunFailure, RunState
from hmi_api.names import TABLE_VERSION_ANNOTATION
from hmi_api.resources.common import Resources
from hmi_operator.planning import JobView, plan_domain
from hmi_operator.planning.actions import RestoreTable, ResumeRun, StartRun, StopRun
from hmi_operator.planning.refresh import LEAST_LOOKUPS, LEAST_PAUSE

# --- runs -------------------------------------------------------------------------------------------------


def test_an_active_refresh_is_shown_and_resumed_and_training_is_not_disturbed() -> None:
    of = wanted(DAILY, refresh="now")
    start = plan_domain(of, seen(of))
    run = run_view(start, RunState.PENDING)
    plan = plan_domain(of, seen(of, refresh_run=run))
    assert kinds(plan.actions) == [ResumeRun]
    assert plan.status.run_ref == "ab"
    assert plan.status.phase == "Ready"
    assert reason(plan.status.conditions, "Refreshed") == ("Unknown", "Running")
    assert reason(plan.status.conditions, "Reconciling") == ("False", "UpToDate")
    alive = plan_domain(of, seen(of, refresh_run=run, refresh_job=JobView(alive=True)))
    assert not alive.actions


def test_a_refresh_of_an_earlier_version_is_stopped() -> None:
    of = wanted(DAILY, refresh="now")
    run = run_view(plan_domain(of, seen(of)), RunState.RUNNING)
    plan = plan_domain(of, seen(of, version=2, refresh_run=run, last_run=ran(request="now")))
    assert kinds(plan.actions) == [StopRun]


def test_a_failed_refresh_is_tried_again_if_that_can_help() -> None:
    of = wanted(DAILY, refresh="now")
    start = plan_domain(of, seen(of))
    passing = RunFailure(reason="InternalError", message="It broke.", retryable=True)
    run = run_view(start, RunState.FAILED, failure=passing)
    plan = plan_domain(of, seen(of, refresh_run=run, last_run=ran(request="now")))
    assert [a.request.attempt for a in plan.actions if isinstance(a, StartRun)] == [1]
    lasting = passing.model_copy(update={"reason": "TableInvalid", "retryable": False})
    run = run_view(start, RunState.FAILED, failure=lasting)
    plan = plan_domain(of, seen(of, refresh_run=run, last_run=ran(request="now")))
    assert not plan.actions
    assert reason(plan.status.conditions, "Refreshed") == ("False", "TableInvalid")
    assert reason(plan.status.conditions, "Ready") == ("True", "Serving")


def test_another_attempt_gets_the_resources_that_were_changed_to_repair_it() -> None:
    of = wanted(DAILY, refresh="now")
    killed = RunFailure(reason="OOMKilled", message="It had too little memory.")
    run = run_view(plan_domain(of, seen(of)), RunState.FAILED, failure=killed)
    resources = Resources(limits={"memory": "8Gi"})
    of = of.model_copy(update={"spec": of.spec.model_copy(update={"resources": resources})})
    plan = plan_domain(of, seen(of, refresh_run=run, last_run=ran(request="now")))
    (spec,) = started(plan)
    assert spec.spec.resources == resources
    assert spec.refresh == run.spec.refresh  # type: ignore[union-attr]
    again = run_view(plan, RunState.FAILED, failure=killed)
    assert not plan_domain(of, seen(of, refresh_run=again, last_run=ran(request="now"))).actions


def test_a_changed_spec_trains_and_a_refresh_stops() -> None:
    of = wanted(DAILY, refresh="now")
    run = run_view(plan_domain(of, seen(of)), RunState.RUNNING)
    changed = wanted({**DAILY, "maxEntries": 7})
    old = seen(of, refresh_run=run)
    plan = plan_domain(changed, old)
    assert [action.run_id for action in plan.actions if isinstance(action, StopRun)] == ["ab"]


def test_a_refresh_without_its_spec_stops() -> None:
    of = wanted(DAILY, refresh="now")
    plan = plan_domain(of, seen(of))
    run = run_view(plan, RunState.RUNNING)
    off = after(wanted(), plan)
    stopped = plan_domain(off, seen(off, refresh_run=run))
    assert kinds(stopped.actions) == [StopRun]
    assert reason(stopped.status.conditions, "Refreshed") == ("Unknown", "NoRefresh")


# --- rollback ---------------------------------------------------------------------------------------------

HISTORY = [table(3, cause="Schedule"), table(2, cause="Schedule"), table(1)]


def test_an_earlier_table_is_put_back_and_kept() -> None:
    of = wanted(BY_MISSES, table_version="2")
    plan = plan_domain(of, seen(of, version=3, tables=HISTORY, misses=LEAST_LOOKUPS))
    assert [action.version for action in plan.actions if isinstance(action, RestoreTable)] == [2]
    back = [table(4, "sha256:t2", restored=2), *HISTORY]
    kept = plan_domain(of, seen(of, version=4, tables=back, misses=LEAST_LOOKUPS))
    assert not kept.actions
    assert reason(kept.status.conditions, "Refreshed") == ("True", "TablePinned")
    assert kept.status.refresh is not None
    assert [one.restored for one in kept.status.refresh.tables] == [2, None, None, None]


def test_an_undone_refresh_is_not_repeated_at_once() -> None:
    of = wanted(BY_MISSES)
    back = [table(4, "sha256:t2", created_at=NOW, restored=2), *HISTORY]
    observed = seen(of, version=4, tables=back, misses=LEAST_LOOKUPS, last_run=ran(2, at=EARLIER))
    assert not plan_domain(of, observed).actions
    later = replace(observed, now=NOW + LEAST_PAUSE)
    assert len(started(plan_domain(of, later))) == 1


@pytest.mark.parametrize("name", ["9", "", "newest"])
def test_a_table_that_is_not_kept_is_named(name: str) -> None:
    of = wanted(BY_MISSES, table_version=name)
    plan = plan_domain(of, seen(of, version=3, tables=HISTORY, misses=LEAST_LOOKUPS))
    assert not plan.actions
    assert reason(plan.status.conditions, "Refreshed") == ("False", "TableNotKept")
    assert "kept are 3, 2, 1" in str(plan.status.conditions)
    assert TABLE_VERSION_ANNOTATION == "hmi.dev/table-version"


def test_putting_back_stops_a_refresh_and_needs_no_refresh_in_the_spec() -> None:
    of = wanted(DAILY, refresh="now")
    run = run_view(plan_domain(of, seen(of, version=3, tables=HISTORY)), RunState.RUNNING)
    pinned = wanted(None, table_version="1")
    plan = plan_domain(pinned, seen(pinned, version=3, tables=HISTORY, refresh_run=run))
    assert kinds(plan.actions) == [StopRun, RestoreTable]
