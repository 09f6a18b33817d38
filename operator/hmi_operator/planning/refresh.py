"""When a Domain's table is refreshed from traffic, or rolled back to an earlier one.

A refresh starts at a time of ``schedule``, when the miss rate is above ``minMissRate``, or when the
annotation ``hmi.dev/refresh`` gets a new value. Its run is identified by the version whose table it refreshes
and the number of the attempt, so that every leader starts the same run. While the annotation
``hmi.dev/table-version`` names a kept version, that version's table is served and nothing is refreshed.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.refreshes import RefreshCause, RefreshRun, RefreshSpec, TableVersion
from hmi_api.internal.runs import DomainRunSpec, RunCreate, RunFailure, RunState, RunView
from hmi_api.internal.storable import clean_text
from hmi_api.names import REFRESH_ANNOTATION, TABLE_VERSION_ANNOTATION, digest_json
from hmi_api.resources.common import format_time
from hmi_api.resources.conditions import DomainCondition
from hmi_api.resources.domain import Domain, RefreshStatus, TableStatus
from hmi_api.resources.reasons import Reason
from hmi_operator.planning.actions import Action, RestoreTable, StartRun, StopRun
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.planning.observed import ObservedDomain
from hmi_operator.planning.schedule import next_after
from hmi_operator.planning.training import Decision, TrainingPhase, decide_run, is_active

LEAST_LOOKUPS = 10_000
"""Least number of lookups in the current version before its miss rate can start a refresh."""
LEAST_PAUSE = timedelta(minutes=10)
"""Least time between two refreshes for the miss rate.

Each refresh that changes nothing doubles it, up to ``LONGEST_PAUSE``.
"""
LONGEST_PAUSE = timedelta(days=1)
CHECK_SECONDS = 60.0
"""How often the miss rate and the schedule are checked without an event."""
_LONGEST_REQUEST = 100
_WHY = {
    RefreshCause.SCHEDULE: "plot.refresh.schedule names this time",
    RefreshCause.MISS_RATE: "more lookups missed than plot.refresh.minMissRate",
    RefreshCause.REQUEST: f"{REFRESH_ANNOTATION} has a new value",
}


@dataclass(frozen=True)
class RefreshPlan:
    """The part of a Domain's plan that is about refreshes."""

    status: RefreshStatus | None
    actions: tuple[Action, ...] = ()
    decision: Decision | None = None
    """About the active or failed run, if there is one."""
    requeue_after: float | None = None


def plan_refresh(
    domain: Domain, observed: ObservedDomain, current: DomainVersionView, writer: ConditionWriter
) -> RefreshPlan:
    """Return what to do about the table of a Domain whose declared spec is published; write ``Refreshed``."""
    return _RefreshPlanner(domain, observed, current, writer).plan()


def wants_refreshes(domain: Domain) -> bool:
    """Return whether a Domain's plan depends on its tables and refresh runs."""
    annotated = TABLE_VERSION_ANNOTATION in domain.metadata.annotations
    return domain.spec.plot.refresh is not None or annotated or domain.status.refresh is not None


def stop_refresh(observed: ObservedDomain, why: str) -> tuple[Action, ...]:
    """Return the action that stops an active refresh, if there is one."""
    run = observed.refresh_run
    if run is None or not is_active(run):
        return ()
    failure = RunFailure(reason=Reason.SUPERSEDED.value, message=f"The refresh was stopped: {why}.")
    return (StopRun(run.id, failure, why=why),)


class _RefreshPlanner:
    def __init__(
        self,
        domain: Domain,
        observed: ObservedDomain,
        current: DomainVersionView,
        writer: ConditionWriter,
    ) -> None:
        self._domain = domain
        self._observed = observed
        self._current = current
        self._writer = writer
        self._spec = domain.spec.plot.refresh
        self._known = observed.refreshes
        self._run = observed.refresh_run
        request = domain.metadata.annotations.get(REFRESH_ANNOTATION, "")
        self._request = clean_text(request)[:_LONGEST_REQUEST]

    def plan(self) -> RefreshPlan:
        if not wants_refreshes(self._domain) or self._known is None:
            return RefreshPlan(None, self._stop("the Domain is not refreshed"))
        pinned = self._domain.metadata.annotations.get(TABLE_VERSION_ANNOTATION)
        if pinned is not None:
            return self._plan_pinned(pinned)
        if self._spec is None:
            self._write_off()
            return RefreshPlan(self._status(None), self._stop("plot.refresh was removed"))
        if self._run is not None and is_active(self._run):
            return self._plan_active(self._run)
        return self._plan_waiting()

    # --- rollback -----------------------------------------------------------------------------------

    def _plan_pinned(self, wanted: str) -> RefreshPlan:
        tables = self._known.tables if self._known else []
        found = next((table for table in tables if str(table.version) == wanted), None)
        stop = self._stop(f"{TABLE_VERSION_ANNOTATION} is set")
        if found is None:
            kept = ", ".join(str(table.version) for table in tables) or "none"
            message = f"{TABLE_VERSION_ANNOTATION} names version {wanted!r:.40}; kept are {kept}."
            self._writer.false(DomainCondition.REFRESHED, Reason.TABLE_NOT_KEPT, message)
            return RefreshPlan(self._status(None), stop)
        served = self._current.tables[0].digest if self._current.tables else ""
        if found.table != served:
            restore = RestoreTable(found.version, why=f"{TABLE_VERSION_ANNOTATION} names it")
            return RefreshPlan(self._status(None), (*stop, restore), requeue_after=0.0)
        message = f"The table of version {found.version} is kept while {TABLE_VERSION_ANNOTATION} is set."
        self._writer.true(DomainCondition.REFRESHED, Reason.TABLE_PINNED, message)
        return RefreshPlan(self._status(None), stop)

    # --- runs ---------------------------------------------------------------------------------------

    def _plan_active(self, run: RunView) -> RefreshPlan:
        if _refreshed_version(run) != self._current.version:
            return RefreshPlan(
                self._status(None), self._stop("another version was published"), requeue_after=0.0
            )
        return self._plan_run(self._decide(run), self._time_after(run))

    def _plan_run(self, decision: Decision, next_time: datetime | None) -> RefreshPlan:
        self._write_decision(decision)
        return RefreshPlan(self._status(next_time), decision.actions, decision, decision.requeue_after)

    def _plan_waiting(self) -> RefreshPlan:
        next_time = self._next_time()
        failed = self._run is not None and self._run.state is RunState.FAILED
        if self._run is not None and failed and _refreshed_version(self._run) == self._current.version:
            decision = self._decide(self._run)
            if decision.phase is not TrainingPhase.FAILED:  # it is tried again
                return self._plan_run(decision, next_time)
        if self._domain.spec.suspend:
            self._writer.unknown(DomainCondition.REFRESHED, Reason.SUSPENDED, "spec.suspend is true.")
            return RefreshPlan(self._status(next_time))
        cause = self._cause(next_time)
        if cause is not None and self._traffic_was_counted():
            start = StartRun(self._new_run(cause), why=_WHY[cause])
            self._writer.unknown(DomainCondition.REFRESHED, Reason.STARTING, "A refresh is being started.")
            return RefreshPlan(self._status(next_time), (start,), requeue_after=0.0)
        if cause is RefreshCause.SCHEDULE:  # there was no traffic: wait for the next time
            next_time = self._scheduled_after(self._observed.now)
        self._write_waiting(next_time)
        return RefreshPlan(self._status(next_time), requeue_after=self._pause(next_time))

    def _cause(self, next_time: datetime | None) -> RefreshCause | None:
        last, now = self._last_run, self._observed.now
        if self._request and (last is None or last.request != self._request):
            return RefreshCause.REQUEST
        if next_time is not None and now >= next_time:
            return RefreshCause.SCHEDULE
        return (
            RefreshCause.MISS_RATE if self._missed_enough() and now >= self._miss_rate_counts_from() else None
        )

    def _missed_enough(self) -> bool:
        lookups = self._observed.view.lookups if self._observed.view else None
        if lookups is None or lookups.lookups < LEAST_LOOKUPS or self._spec is None:
            return False
        return lookups.misses > self._spec.min_miss_rate * lookups.lookups

    def _miss_rate_counts_from(self) -> datetime:
        """Return the earliest time at which the miss rate may start a refresh."""
        last = self._last_run
        published = (
            self._known.tables[0].created_at if self._known and self._known.tables else self._observed.now
        )
        if last is None or last.version != self._current.version:
            return published + LEAST_PAUSE
        pause = min(LEAST_PAUSE * (1 << min(last.attempt + 1, 16)), LONGEST_PAUSE)
        return max(published + LEAST_PAUSE, last.created_at + pause)

    def _new_run(self, cause: RefreshCause) -> RunCreate:
        last = self._last_run
        tried = last is not None and last.version == self._current.version
        lookups = self._observed.view.lookups if self._observed.view else None
        refresh = RefreshSpec(
            current=self._current,
            cause=cause,
            request=self._request,
            hit_rate=lookups.hit_rate if lookups else None,
        )
        return self._create(refresh, last.attempt + 1 if last is not None and tried else 0)

    def _create(self, refresh: RefreshSpec, attempt: int) -> RunCreate:
        return RunCreate(
            uid=self._domain.metadata.uid,
            tenant=self._observed.tenant,
            spec_digest=digest_json({"refresh": refresh.current.version}),
            attempt=attempt,
            spec=self._run_spec(refresh),
        )

    def _run_spec(self, refresh: RefreshSpec | None) -> DomainRunSpec:
        metadata, parent = self._domain.metadata, self._observed.parent
        return DomainRunSpec(
            namespace=metadata.namespace,
            name=metadata.name,
            spec=self._domain.spec,
            parent=parent.current if parent else None,
            refresh=refresh,
        )

    def _stop(self, why: str) -> tuple[Action, ...]:
        return stop_refresh(self._observed, why)

    def _decide(self, run: RunView) -> Decision:
        """Return what to do about the last refresh run; another attempt uses the present spec."""
        observed = replace(self._observed, run=run, job=self._observed.refresh_job)
        return decide_run(self._domain, observed, run, self._run_spec(_refresh_of(run)))

    # --- time ---------------------------------------------------------------------------------------

    def _next_time(self) -> datetime | None:
        """Return the next scheduled time: the one in the status, unless a refresh was made since."""
        status, last = self._domain.status.refresh, self._last_run
        if self._spec is None or self._spec.schedule is None:
            return None
        if status is None or status.schedule != self._spec.schedule or status.next_time is None:
            return self._scheduled_after(self._observed.now)
        next_time = datetime.fromisoformat(status.next_time)
        done = last is not None and last.created_at >= next_time
        return self._scheduled_after(last.created_at) if last is not None and done else next_time

    def _time_after(self, run: RunView) -> datetime | None:
        """Return the next scheduled time while ``run`` is active.

        A run that the schedule started is for the scheduled time that has passed. Its ``created_at`` cannot
        be compared with that time: the control plane's clock may be behind this one.
        """
        next_time, refresh, now = self._next_time(), _refresh_of(run), self._observed.now
        is_for_schedule = refresh is not None and refresh.cause is RefreshCause.SCHEDULE
        if next_time is not None and next_time <= now and is_for_schedule:
            return self._scheduled_after(now)
        return next_time

    def _scheduled_after(self, moment: datetime) -> datetime | None:
        schedule = self._spec.schedule if self._spec else None
        return next_after(schedule, moment) if schedule else None

    def _pause(self, next_time: datetime | None) -> float:
        left = (next_time - self._observed.now).total_seconds() if next_time else CHECK_SECONDS
        return min(max(left, 1.0), CHECK_SECONDS)

    # --- status -------------------------------------------------------------------------------------

    def _traffic_was_counted(self) -> bool:
        """Return whether windows were looked up in the Domain, or below it with the same layers."""
        view = self._observed.view
        own = view.lookups.lookups if view is not None and view.lookups is not None else 0
        below = view.tree.lookups if view is not None and view.tree is not None else 0
        return own + below > 0

    @property
    def _last_run(self) -> RefreshRun | None:
        return self._known.last_run if self._known is not None else None

    def _write_decision(self, decision: Decision) -> None:
        writer, type_ = self._writer, DomainCondition.REFRESHED
        if decision.problem is not None:
            writer.false(type_, decision.problem.reason, decision.problem.message)
        elif decision.phase is TrainingPhase.RETRYING:
            writer.unknown(type_, Reason.RETRYING, decision.message)
        elif decision.phase is TrainingPhase.SUSPENDED:
            writer.unknown(type_, Reason.SUSPENDED, "spec.suspend is true: nothing new is started.")
        else:
            reason = Reason.QUEUED if decision.phase is TrainingPhase.QUEUED else Reason.RUNNING
            run = f" {decision.run.id}" if decision.run else ""
            writer.unknown(type_, reason, f"Refresh run{run} is {reason.value.lower()}.")

    def _write_waiting(self, next_time: datetime | None) -> None:
        writer, failed = self._writer, self._run
        if self._spec is not None and self._spec.schedule is not None and next_time is None:
            message = (
                f'spec.plot.refresh.schedule "{self._spec.schedule}" names no time: a range falls, or the '
                "day never comes. The table is refreshed for misses and on request only."
            )
            writer.false(DomainCondition.REFRESHED, Reason.SCHEDULE_INVALID, message)
            return
        failure = failed.failure if failed is not None else None
        if failure is not None and failed is not None and _refreshed_version(failed) == self._current.version:
            message = f"The last refresh failed: {failure.message} It is tried again when it is time."
            writer.false(DomainCondition.REFRESHED, failure.reason, message)
            return
        newest = self._known.tables[0].change if self._known and self._known.tables else None
        if newest is not None and newest.cause is not None:
            writer.true(DomainCondition.REFRESHED, Reason.TABLE_REFRESHED, self._tables()[0].sentence())
        else:
            writer.true(DomainCondition.REFRESHED, Reason.REFRESH_WAITS, self._why_not_refreshed())

    def _why_not_refreshed(self) -> str:
        last, tables = self._last_run, self._known.tables if self._known else []
        change = tables[0].change if tables else None
        if last is not None and last.version == self._current.version and last.state == RunState.SUCCEEDED:
            return "The last refresh found nothing to change."
        if change is not None and change.restored is not None:
            return f"The table was rolled back to that of version {change.restored}, and not refreshed since."
        return "The table was not refreshed yet."

    def _write_off(self) -> None:
        message = "spec.plot.refresh is absent: the table stays as it is."
        self._writer.unknown(DomainCondition.REFRESHED, Reason.NO_REFRESH, message)

    def _status(self, next_time: datetime | None) -> RefreshStatus:
        tables = self._tables()
        refreshed = next((table.created for table in tables if table.cause is not None), None)
        before = self._domain.status.refresh
        return RefreshStatus(
            last_refresh=refreshed or (before.last_refresh if before else None),
            next_time=format_time(next_time) if next_time is not None else None,
            schedule=self._spec.schedule if self._spec else None,
            tables=tables,
        )

    def _tables(self) -> list[TableStatus]:
        return [_table_status(table) for table in (self._known.tables if self._known else [])]


def _table_status(table: TableVersion) -> TableStatus:
    change = table.change
    refreshed = change is not None and change.cause is not None
    rate = change.hit_rate_before if change is not None else None
    return TableStatus(
        version=table.version,
        entries=table.entries,
        created=format_time(table.created_at),
        cause=change.cause.value if change is not None and change.cause is not None else None,
        windows_in=change.windows_in if change is not None and refreshed else None,
        windows_out=change.windows_out if change is not None and refreshed else None,
        hit_rate_before=round(rate, 4) if rate is not None else None,
        restored=change.restored if change is not None else None,
    )


def _refresh_of(run: RunView) -> RefreshSpec | None:
    return run.spec.refresh if isinstance(run.spec, DomainRunSpec) else None


def _refreshed_version(run: RunView) -> int | None:
    refresh = _refresh_of(run)
    return refresh.current.version if refresh is not None else None
