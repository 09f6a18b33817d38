"""When a Domain's table is refreshed: by the clock, by misses, on request."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from planning_fixtures import NOW, domain, reason
from refresh_fixtures import BY_MISSES, DAILY, EARLIER, after, ran, run_view, seen, started, table, wanted

from hmi_api.internal.catalog import DomainTree, TableLevel
from hmi_api.internal.refreshes import RefreshRun, TableVersion
from hmi_api.internal.runs import RunState
from hmi_api.names import REFRESH_ANNOTATION
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.domain import SharedTableStatus, TableLevelStatus
from hmi_operator.planning import JobView, plan_domain
from hmi_operator.planning.actions import StartRun
from hmi_operator.planning.refresh import LEAST_LOOKUPS, LEAST_PAUSE

# --- schedule ---------------------------------------------------------------------------------------------


def test_a_domain_without_refresh_is_not_refreshed() -> None:
    of = wanted()
    plan = plan_domain(of, seen(of, misses=LEAST_LOOKUPS))
    assert not plan.actions
    assert plan.status.refresh is None
    assert plan.requeue_after is None


def test_the_first_refresh_waits_for_the_schedules_next_time() -> None:
    of = wanted(DAILY)
    plan = plan_domain(of, seen(of))
    assert not plan.actions
    assert plan.status.refresh is not None
    assert plan.status.refresh.next_time == "2026-11-22T03:00:00Z"
    assert reason(plan.status.conditions, "Refreshed") == ("True", "RefreshWaits")
    assert reason(plan.status.conditions, "Ready") == ("True", "Serving")


@pytest.mark.parametrize("schedule", ["0 0 31 2 *", "30-10 * * * *"])
def test_a_schedule_that_names_no_time_is_a_condition_and_requests_still_count(schedule: str) -> None:
    plot = {"refresh": {"schedule": schedule, "minMissRate": 1}}
    of = wanted(plot)
    plan = plan_domain(of, seen(of))
    assert not plan.actions
    assert plan.status.refresh is not None
    assert plan.status.refresh.next_time is None
    assert reason(plan.status.conditions, "Refreshed") == ("False", "ScheduleInvalid")
    assert reason(plan.status.conditions, "Ready") == ("True", "Serving")
    requested = wanted(plot, refresh="now")
    assert [
        spec.refresh.cause for spec in started(plan_domain(requested, seen(requested))) if spec.refresh
    ] == ["Request"]


def test_a_refresh_is_started_once_at_its_time_whoever_leads() -> None:
    of = wanted(DAILY)
    of = after(of, plan_domain(of, seen(of)))
    at = datetime.fromisoformat("2026-11-22T03:00:00Z")
    assert not plan_domain(of, seen(of, now=at - timedelta(seconds=1))).actions
    late = at + timedelta(hours=5)  # nobody led meanwhile: made up for, once
    plan, other = (plan_domain(of, seen(of, now=late + timedelta(seconds=n))) for n in (0, 1))
    requests = [action.request for p in (plan, other) for action in p.actions if isinstance(action, StartRun)]
    assert requests[0] == requests[1]
    (spec,) = started(plan)
    assert spec.refresh is not None
    assert (spec.refresh.cause, spec.refresh.current.version, spec.refresh.hit_rate) == ("Schedule", 1, 1.0)
    done = [table(2, created_at=late, cause="Schedule", windows_in=3), table(1)]
    then = seen(of, version=2, tables=done, last_run=ran(at=late), now=late + timedelta(minutes=5))
    following = plan_domain(of, then)  # the status of the start may be lost
    assert not following.actions
    assert following.status.refresh is not None
    assert following.status.refresh.next_time == "2026-11-23T03:00:00Z"
    assert following.status.refresh.last_refresh == "2026-11-22T08:00:00Z"


def test_a_scheduled_refresh_is_not_repeated_if_the_control_planes_clock_is_behind() -> None:
    of = wanted(DAILY)
    of = after(of, plan_domain(of, seen(of)))
    at = datetime.fromisoformat("2026-11-22T03:00:00Z")
    behind = at - timedelta(seconds=1)
    start = plan_domain(of, seen(of, now=at))
    run = run_view(start, RunState.RUNNING)
    active = seen(of, now=at, refresh_run=run, refresh_job=JobView(alive=True), last_run=ran(at=behind))
    of = after(of, plan_domain(of, active))
    done = [table(2, created_at=at, cause="Schedule", windows_in=3), table(1)]
    later = at + timedelta(minutes=1)
    plan = plan_domain(of, seen(of, version=2, tables=done, last_run=ran(at=behind), now=later))
    assert not plan.actions
    assert plan.status.refresh is not None
    assert plan.status.refresh.next_time == "2026-11-23T03:00:00Z"


def test_a_parent_is_refreshed_for_the_traffic_of_those_that_share_its_layers() -> None:
    of = wanted(DAILY)
    of = after(of, plan_domain(of, seen(of, lookups=0)))
    observed = seen(of, lookups=0, now=NOW + timedelta(days=1))
    assert observed.view is not None
    level = TableLevel(domain="commons/hotel", entries=9, bytes=1000)
    tree = DomainTree(levels=[level], below=3, lookups=1)
    plan = plan_domain(of, replace(observed, view=observed.view.model_copy(update={"tree": tree})))
    assert len(started(plan)) == 1
    assert plan.status.levels == [TableLevelStatus(domain="commons/hotel", entries=9, bytes=1000)]
    assert plan.status.shared == SharedTableStatus(domains=3, saved_bytes_at_most=2000)


def test_a_time_without_traffic_passes() -> None:
    of = wanted(DAILY)
    of = after(of, plan_domain(of, seen(of, lookups=0)))
    plan = plan_domain(of, seen(of, lookups=0, now=NOW + timedelta(days=1)))
    assert not plan.actions
    assert plan.status.refresh is not None
    assert plan.status.refresh.next_time == "2026-11-23T03:00:00Z"


def test_another_schedule_begins_anew() -> None:
    of = wanted(DAILY)
    before = plan_domain(of, seen(of)).status
    of = wanted({"refresh": {"schedule": "@hourly", "minMissRate": 1}}).model_copy(update={"status": before})
    plan = plan_domain(of, seen(of, now=NOW + timedelta(days=2)))
    assert not plan.actions
    assert plan.status.refresh is not None
    assert plan.status.refresh.next_time == "2026-11-23T13:00:00Z"


def test_a_suspended_domain_is_refreshed_when_it_continues() -> None:
    of = wanted(DAILY)
    status = plan_domain(of, seen(of)).status
    held = domain(plot=DAILY, suspend=True).model_copy(update={"status": status})
    late = NOW + timedelta(days=1)
    plan = plan_domain(held, seen(held, now=late))
    assert not plan.actions
    assert reason(plan.status.conditions, "Refreshed") == ("Unknown", "Suspended")
    again = domain(plot=DAILY).model_copy(update={"status": plan.status})
    assert len(started(plan_domain(again, seen(again, now=late)))) == 1


# --- misses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lookups", "misses", "since", "expected"),
    [
        (LEAST_LOOKUPS, LEAST_LOOKUPS // 10, LEAST_PAUSE, True),
        (LEAST_LOOKUPS, LEAST_LOOKUPS // 20, LEAST_PAUSE, False),  # exactly minMissRate
        (LEAST_LOOKUPS - 1, LEAST_LOOKUPS // 2, LEAST_PAUSE, False),  # too few to say
        (LEAST_LOOKUPS, LEAST_LOOKUPS // 2, LEAST_PAUSE - timedelta(seconds=1), False),  # just published
    ],
)
def test_misses_start_a_refresh(lookups: int, misses: int, since: timedelta, expected: bool) -> None:
    of = wanted(BY_MISSES)
    tables = [table(1, created_at=NOW - since)]
    plan = plan_domain(of, seen(of, lookups=lookups, misses=misses, tables=tables))
    specs = started(plan)
    assert bool(specs) is expected
    assert not specs or (specs[0].refresh is not None and specs[0].refresh.cause == "MissRate")


def test_refreshes_that_change_nothing_become_rarer() -> None:
    of = wanted(BY_MISSES)
    for attempt, pause in ((0, 2 * LEAST_PAUSE), (1, 4 * LEAST_PAUSE), (30, timedelta(days=1))):
        for now, expected in ((EARLIER + pause - timedelta(seconds=1), False), (EARLIER + pause, True)):
            observed = seen(of, misses=LEAST_LOOKUPS, last_run=ran(attempt=attempt, at=EARLIER), now=now)
            plan = plan_domain(of, observed)
            assert bool(started(plan)) is expected
            assert [a.request.attempt for a in plan.actions if isinstance(a, StartRun)] == (
                [attempt + 1] if expected else []
            )


# --- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "last_run", "expected"),
    [
        ([table(3)], None, "not refreshed yet"),
        ([table(3)], ran(3), "found nothing to change"),
        ([table(3, restored=1)], ran(2), "rolled back to that of version 1"),
    ],
)
def test_a_table_as_it_was_says_why(
    tables: list[TableVersion], last_run: RefreshRun | None, expected: str
) -> None:
    of = wanted(DAILY)
    plan = plan_domain(of, seen(of, version=3, tables=tables, last_run=last_run))
    assert reason(plan.status.conditions, "Refreshed") == ("True", "RefreshWaits")
    found = find_condition(plan.status.conditions, "Refreshed")
    assert found is not None
    assert expected in found.message


def test_a_new_value_of_the_annotation_refreshes_at_once_and_once() -> None:
    of = wanted(DAILY, refresh="monday")
    (spec,) = started(plan_domain(of, seen(of, lookups=5)))
    assert spec.refresh is not None
    assert (spec.refresh.cause, spec.refresh.request) == ("Request", "monday")
    assert not plan_domain(of, seen(of, lookups=5, last_run=ran(request="monday"))).actions
    of = wanted(None, refresh="monday")
    assert not plan_domain(of, seen(of)).actions
    assert REFRESH_ANNOTATION == "hmi.dev/refresh"


def test_a_request_that_cannot_be_stored_as_it_is_refreshes_too() -> None:
    of = wanted(DAILY, refresh="a\0b")
    (spec,) = started(plan_domain(of, seen(of)))
    assert spec.refresh is not None
    assert not plan_domain(of, seen(of, last_run=ran(request=spec.refresh.request))).actions


# --- status -----------------------------------------------------------------------------------------------


def test_the_status_has_a_hit_rate_that_is_not_written_at_every_request() -> None:
    of = wanted()
    plan = plan_domain(of, seen(of, lookups=1000, misses=123))
    assert plan.status.hit_rate == 0.877
    again = plan_domain(after(of, plan), seen(of, lookups=1001, misses=123))
    assert again.status.hit_rate == 0.877
    changed = plan_domain(after(of, plan), seen(of, lookups=1200, misses=123))
    assert changed.status.hit_rate == 0.897
    assert plan_domain(of, seen(of, lookups=0)).status.hit_rate is None
