"""Why a model is not served: work in progress, or a cause that a person must remove.

The response is 503 with ``Retry-After`` only while work is in progress that may make the model available:
training, a retry, loading, a runtime that restarts. Otherwise it is 409 with the reason and the message
of the resource's conditions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
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

_GRACE_PERIOD = timedelta(seconds=60)
"""How long a resource may have no training run: the operator normally creates one within seconds."""

_RETRY_AFTER_TRAINING = 10
_RETRY_AFTER_LOADING = 1
"""``Retry-After`` in seconds."""
_MAX_ANCESTORS = 64


@dataclass(frozen=True, slots=True)
class Unavailability:
    """Why no runtime serves a model. ``retry_after`` is in seconds; None: a retry does not help."""

    reason: str
    message: str
    retry_after: int | None = None


NOT_LOADED_YET = Unavailability(
    "ModelNotLoaded", "It is not loaded yet; try again shortly.", _RETRY_AFTER_LOADING
)


def explain_unavailable(session: Session, adapters: Sequence[AdapterRow]) -> dict[int, Unavailability]:
    """Return by adapter id why no runtime serves each of ``adapters``."""
    published = [adapter for adapter in adapters if adapter.current_version is not None]
    failures = _load_failures(session, published)
    found = {adapter.id: _not_loaded(failures.get(adapter.id, [])) for adapter in published}
    for adapter in adapters:
        if adapter.current_version is None:
            found[adapter.id] = _not_published(session, adapter)
    return found


# --- published, and not loaded -----------------------------------------------------------------------


def _load_failures(session: Session, adapters: Sequence[AdapterRow]) -> Mapping[int, list[LoadReport]]:
    """Return the failures that live runtimes reported for current versions."""
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


def _not_loaded(failures: Sequence[LoadReport]) -> Unavailability:
    final = [failure for failure in failures if failure.reason not in PASSING_LOAD_FAILURES]
    if failures and len(final) == len(failures):
        return Unavailability(final[-1].reason, final[-1].message)
    if failures:
        message = f"It could not be loaded and is tried again: {failures[-1].message}"
        return Unavailability("ModelNotLoaded", message, _RETRY_AFTER_LOADING)
    return NOT_LOADED_YET


# --- not published -----------------------------------------------------------------------------------


def _not_published(session: Session, adapter: AdapterRow) -> Unavailability:
    if adapter.withdrawn is not None:
        return Unavailability(adapter.withdrawn["reason"], adapter.withdrawn["message"])
    run = _last_run(session, adapter)
    if run is not None:
        return _from_run(run, "It")
    domain_problem = _from_domain(session, adapter.domain, adapter.tenant)
    if domain_problem is not None:
        is_new = utc_now() - adapter.created_at < _GRACE_PERIOD  # its Domain may be applied a moment later
        missing = domain_problem.reason == Reason.DOMAIN_NOT_FOUND
        return _in_progress("It waits for its Domain.") if missing and is_new else domain_problem
    return _no_run(session, adapter, "the TaskAdapter")


def _from_domain(session: Session, key: str, tenant: str) -> Unavailability | None:
    """Return why a Domain has no version; None if it has one."""
    for _ in range(_MAX_ANCESTORS):
        domain = session.scalar(select(DomainRow).where(DomainRow.key == key))
        if domain is None:
            return Unavailability(
                Reason.DOMAIN_NOT_FOUND, f"It needs Domain {key}, which does not exist or was not accepted."
            )
        if domain.current_version is not None:
            return None
        run = _last_run(session, domain)
        if run is not None:
            found = _from_run(run, f"Domain {key}, which it needs,")
            if domain.tenant == tenant or found.retry_after is not None:
                return found
            # The message may quote the other tenant's data; the reason is enough.
            return Unavailability(found.reason, f"Domain {key}, which it needs, could not be trained.")
        parent = domain.parent
        if parent is None or _has_version(session, parent):
            return _no_run(session, domain, f"Domain {key}")
        key = parent
    return Unavailability(Reason.PARENT_CYCLE, f"Domain {key}, which it needs, has too many ancestors.")


def _has_version(session: Session, key: str) -> bool:
    return session.scalar(select(DomainRow.current_version).where(DomainRow.key == key)) is not None


def _last_run(session: Session, resource: AdapterRow | DomainRow) -> TrainingRun | None:
    """Return the newest run for the resource's current spec digest."""
    return session.scalar(
        select(TrainingRun)
        .where(TrainingRun.uid == resource.uid, TrainingRun.spec_digest == resource.spec_digest)
        .order_by(TrainingRun.attempt.desc())
        .limit(1)
    )


def _from_run(run: TrainingRun, subject: str) -> Unavailability:
    state = RunState(run.state)
    if state is RunState.FAILED:
        return _from_failure(run, run.failure or {}, subject)
    result = run.result or {}
    if state is RunState.SUCCEEDED and result.get("gatePassed") is False:
        message = result.get("gateMessage") or "The gate's minimum was not reached."
        return Unavailability(Reason.GATE_NOT_REACHED, f"{subject} did not pass its gate: {message}")
    if state is RunState.PENDING:
        return _in_progress(f"{subject} waits for its training to start.")
    return _in_progress(f"{subject} is being trained.")


def _from_failure(run: TrainingRun, failure: Mapping[str, Any], subject: str) -> Unavailability:
    reason = str(failure.get("reason") or Reason.PROCESS_DIED)
    has_attempts = run.attempt + 1 < TRAINING_ATTEMPTS or reason in RETRIED_WITHOUT_LIMIT
    retried = bool(failure.get("retryable")) and has_attempts
    if retried or reason == Reason.SUPERSEDED:
        return _in_progress(f"Training of it failed for a passing cause and is tried again ({reason}).")
    message = failure.get("message") or "The run gave no cause."
    return Unavailability(reason, f"{subject} could not be trained: {message}")


def _no_run(session: Session, resource: AdapterRow | DomainRow, name: str) -> Unavailability:
    """Return the explanation for a resource without a run: one is about to start, within the grace period."""
    last = session.scalar(select(func.max(TrainingRun.finished_at)).where(TrainingRun.uid == resource.uid))
    since = max(filter(None, (resource.created_at, last, _domain_published_at(session, resource))))
    if utc_now() - since < _GRACE_PERIOD:
        return _in_progress("Its training is about to start.")
    return Unavailability(
        "ModelNotTrained",
        f"Nothing trains it: {name} is suspended, or was not accepted; its conditions say why.",
    )


def _domain_published_at(session: Session, resource: AdapterRow | DomainRow) -> datetime | None:
    """Return when the Domain that the resource depends on was last published."""
    key = resource.domain if isinstance(resource, AdapterRow) else resource.parent
    return session.scalar(
        select(DomainVersion.created_at)
        .join(DomainRow, DomainRow.id == DomainVersion.domain_id)
        .where(DomainRow.key == key)
        .order_by(DomainVersion.version.desc())
        .limit(1)
    )


def _in_progress(message: str) -> Unavailability:
    return Unavailability("ModelNotTrained", f"{message} Try again later.", _RETRY_AFTER_TRAINING)
