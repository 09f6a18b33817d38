"""Domains whose tables are refreshed, and observations of them, for tests of planning."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from planning_fixtures import NOW, domain, domain_version, observed_domain

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.internal.refreshes import Refreshes, RefreshRun, TableChange, TableVersion
from hmi_api.internal.runs import DomainRunSpec, RunState, RunView
from hmi_api.internal.window_counts import DomainLookups
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.spec_changes import domain_run_digest
from hmi_operator.planning import ObservedDomain
from hmi_operator.planning.actions import Plan, StartRun
from hmi_operator.planning.refresh import LEAST_LOOKUPS

DAILY = {"refresh": {"schedule": "0 3 * * *", "minMissRate": 1}}
BY_MISSES = {"refresh": {"minMissRate": 0.05}}
EARLIER = NOW - timedelta(days=3)


def table(version: int, digest: str = "", created_at: datetime = EARLIER, **change: Any) -> TableVersion:
    made = TableChange(**change) if change else None
    return TableVersion(
        version=version, table=digest or f"sha256:t{version}", entries=9, created_at=created_at, change=made
    )


def wanted(plot: dict[str, Any] | None = None, **annotations: str) -> Domain:
    made = domain(**({"plot": plot} if plot else {}))
    named = {f"hmi.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return made.model_copy(update={"metadata": made.metadata.model_copy(update={"annotations": named})})


def seen(
    of: Domain,
    *,
    version: int = 1,
    tables: list[TableVersion] | None = None,
    last_run: RefreshRun | None = None,
    lookups: int = 2 * LEAST_LOOKUPS,
    misses: int = 0,
    now: datetime = NOW,
    **changes: Any,
) -> ObservedDomain:
    """A published Domain whose traffic was counted."""
    tables = tables or [table(version)]
    current = domain_version(domain_run_digest(of, None), version=version).model_copy(
        update={"tables": [ArtifactRef(kind=ArtifactKind.TABLE, uri="t", digest=tables[0].table, bytes=1)]}
    )
    observed = observed_domain(of, current=current)
    assert observed.view is not None
    view = observed.view.model_copy(update={"lookups": DomainLookups.of(lookups, lookups - misses)})
    refreshes = Refreshes(tables=tables, last_run=last_run)
    return replace(observed, view=view, refreshes=refreshes, now=now, **changes)


def ran(version: int = 1, *, attempt: int = 0, at: datetime = EARLIER, request: str = "") -> RefreshRun:
    return RefreshRun(
        run_id="ab", version=version, attempt=attempt, state="Succeeded", request=request, created_at=at
    )


def started(plan: Plan[DomainStatus]) -> list[DomainRunSpec]:
    found = [action.request.spec for action in plan.actions if isinstance(action, StartRun)]
    return [spec for spec in found if isinstance(spec, DomainRunSpec)]


def after(of: Domain, plan: Plan[DomainStatus]) -> Domain:
    """The Domain with the status that was planned."""
    return of.model_copy(update={"status": plan.status})


def run_view(plan: Plan[DomainStatus], state: RunState, **changes: Any) -> RunView:
    (request,) = [action.request for action in plan.actions if isinstance(action, StartRun)]
    fields = request.model_dump(exclude={"tenant", "spec"})
    return RunView(**({"id": "ab", "state": state, "spec": request.spec, **fields} | changes))
