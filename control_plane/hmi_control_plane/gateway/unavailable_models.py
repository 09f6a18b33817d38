"""Why a model is not served: what is under way for it, or the cause that keeps it away until somebody acts.

A request for it is 503 with ``Retry-After`` only while something is under way that may end by itself:
training, a retry, loading, a runtime that is to come back. Otherwise it is 409 with the reason and the
message that the resource's conditions have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.internal.runs import RETRIED_WITHOUT_LIMIT, TRAINING_ATTEMPTS, RunState
from hmi_api.internal.runtimes import PASSING_LOAD_FAILURES
from hmi_api.resources.reasons import Reason
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    DomainRow,
    DomainVersion,
    LoadReport,
    LoadState,
    Runtime,
    TrainingRun,
)

_GRACE = timedelta(seconds=60)
"""How long a resource may be without a training run: whoever reconciles sees it within seconds."""

_TRAINING_SECONDS = 10
_LOADING_SECONDS = 1
_MOST_ANCESTORS = 64


@dataclass(frozen=True, slots=True)
class Absence:
    """Why nobody serves a model. ``retry_after`` is in seconds; None: asking again does not help."""

    reason: str
    message: str
    retry_after: int | None = None


def absences(session: Session, adapters: Sequence[AdapterRow]) -> dict[int, Absence]:
    """Return by adapter id why each of ``adapters``, which no runtime serves, is not served."""
    published = [adapter for adapter in adapters if adapter.current_version is not None]
    failures = _load_failures(session, published)
    found = {adapter.id: _not_loaded(failures.get(adapter.id, [])) for adapter in published}
    for adapter in adapters:
        if adapter.current_version is None:
            found[adapter.id] = _not_published(session, adapter)
    return found


# --- published, and not loaded -----------------------------------------------------------------------


def _load_failures(session: Session, adapters: Sequence[AdapterRow]) -> Mapping[int, list[LoadReport]]:
    """Return what living runtimes reported of current versions that they could not load."""
    rows = session.scalars(
        select(LoadReport)
        .join(Runtime, Runtime.id == LoadReport.runtime_id)
        .join(AdapterRow, AdapterRow.id == LoadReport.adapter_id)
        .where(
            AdapterRow.id.in_([adapter.id for adapter in adapters]),
            AdapterRow.current_version == LoadReport.version,
            LoadReport.state == LoadState.FAILED,
            Runtime.lost.is_(False),
        )
        .order_by(LoadReport.updated_at)
    )
    found: dict[int, list[LoadReport]] = {}
    for row in rows:
        found.setdefault(row.adapter_id, []).append(row)
    return found


def _not_loaded(failures: Sequence[LoadReport]) -> Absence:
    final = [failure for failure in failures if failure.reason not in PASSING_LOAD_FAILURES]
    if failures and len(final) == len(failures):
        return Absence(final[-1].reason, final[-1].message)
    if failures:
        message = f"It could not be loaded and is tried again: {failures[-1].message}"
        return Absence("ModelNotLoaded", message, _LOADING_SECONDS)
    return Absence("ModelNotLoaded", "It is not loaded yet; try again shortly.", _LOADING_SECONDS)


# --- not published -----------------------------------------------------------------------------------


def _not_published(session: Session, adapter: AdapterRow) -> Absence:
    if adapter.withdrawn is not None:
        return Absence(adapter.withdrawn["reason"], adapter.withdrawn["message"])
    run = _last_run(session, adapter)
    if run is not None:
        return _of_run(run, "It")
    above = _of_domain(session, adapter.domain, adapter.tenant)
    if above is not None:
        is_new = utc_now() - adapter.created_at < _GRACE  # its Domain may be declared a moment later
        missing = above.reason == Reason.DOMAIN_NOT_FOUND
        return _soon("It waits for its Domain.") if missing and is_new else above
    return _without_run(session, adapter, "the TaskAdapter")


def _of_domain(session: Session, key: str, tenant: str) -> Absence | None:
    """Return what keeps a Domain from having a version; None when it has one."""
    for _ in range(_MOST_ANCESTORS):
        domain = session.scalar(select(DomainRow).where(DomainRow.key == key))
        if domain is None:
            return Absence(
                Reason.DOMAIN_NOT_FOUND, f"It needs Domain {key}, which does not exist or was not accepted."
            )
        if domain.current_version is not None:
            return None
        run = _last_run(session, domain)
        if run is not None:
            found = _of_run(run, f"Domain {key}, which it needs,")
            if domain.tenant == tenant or found.retry_after is not None:
                return found
            # What stands in another tenant's data is not told: the reason says enough.
            return Absence(found.reason, f"Domain {key}, which it needs, could not be trained.")
        parent = domain.parent
        if parent is None or _has_version(session, parent):
            return _without_run(session, domain, f"Domain {key}")
        key = parent
    return Absence(Reason.PARENT_CYCLE, f"Domain {key}, which it needs, has too many ancestors.")


def _has_version(session: Session, key: str) -> bool:
    return session.scalar(select(DomainRow.current_version).where(DomainRow.key == key)) is not None


def _last_run(session: Session, resource: AdapterRow | DomainRow) -> TrainingRun | None:
    """Return the newest run for what the resource declares now."""
    return session.scalar(
        select(TrainingRun)
        .where(TrainingRun.uid == resource.uid, TrainingRun.spec_digest == resource.spec_digest)
        .order_by(TrainingRun.attempt.desc())
        .limit(1)
    )


def _of_run(run: TrainingRun, subject: str) -> Absence:
    state = RunState(run.state)
    if state is RunState.FAILED:
        return _of_failure(run, run.failure or {}, subject)
    result = run.result or {}
    if state is RunState.SUCCEEDED and result.get("gatePassed") is False:
        message = result.get("gateMessage") or "The gate's minimum was not reached."
        return Absence(Reason.GATE_NOT_REACHED, f"{subject} did not pass its gate: {message}")
    if state is RunState.PENDING:
        return _soon(f"{subject} waits for its training to start.")
    return _soon(f"{subject} is being trained.")


def _of_failure(run: TrainingRun, failure: Mapping[str, Any], subject: str) -> Absence:
    reason = str(failure.get("reason") or Reason.PROCESS_DIED)
    has_attempts = run.attempt + 1 < TRAINING_ATTEMPTS or reason in RETRIED_WITHOUT_LIMIT
    retried = bool(failure.get("retryable")) and has_attempts
    if retried or reason == Reason.SUPERSEDED:
        return _soon(f"Training of it failed for a passing cause and is tried again ({reason}).")
    message = failure.get("message") or "The run gave no cause."
    return Absence(reason, f"{subject} could not be trained: {message}")


def _without_run(session: Session, resource: AdapterRow | DomainRow, name: str) -> Absence:
    """Return what to say while no run is there: one is to come, unless nothing was heard for long."""
    last: datetime | None = session.scalar(
        select(TrainingRun.finished_at)
        .where(TrainingRun.uid == resource.uid, TrainingRun.finished_at.is_not(None))
        .order_by(TrainingRun.finished_at.desc())
        .limit(1)
    )
    since = max(filter(None, (resource.created_at, last, _domain_published_at(session, resource))))
    if utc_now() - since < _GRACE:
        return _soon("Its training is about to start.")
    return Absence(
        "ModelNotTrained",
        f"Nothing trains it: {name} is suspended, or was not accepted; its conditions say why.",
    )


def _domain_published_at(session: Session, resource: AdapterRow | DomainRow) -> datetime | None:
    """Return when what the resource stands on was last published."""
    key = resource.domain if isinstance(resource, AdapterRow) else resource.parent
    return session.scalar(
        select(DomainVersion.created_at)
        .join(DomainRow, DomainRow.id == DomainVersion.domain_id)
        .where(DomainRow.key == key)
        .order_by(DomainVersion.version.desc())
        .limit(1)
    )


def _soon(message: str) -> Absence:
    return Absence("ModelNotTrained", f"{message} Try again later.", _TRAINING_SECONDS)
