"""Training runs: made once for a spec and an attempt, then followed to their end."""

import secrets
import time
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from hmi_api.internal.runs import RunCreate, RunFailure, RunProgress, RunState, RunView
from hmi_api.internal.storable import WireModel
from hmi_control_plane.catalog.cursors import TEXT_CURSOR, decode_cursor
from hmi_control_plane.catalog.database import insert_missing
from hmi_control_plane.catalog.paging import Page, page_of
from hmi_control_plane.catalog.tables import TrainingRun
from hmi_control_plane.catalog.tenants import get_tenant
from hmi_control_plane.catalog.times import now
from hmi_control_plane.catalog.views import run_view
from hmi_control_plane.http.errors import Conflict, NotFound

FINAL = frozenset({RunState.SUCCEEDED, RunState.FAILED})
RESOURCE_DELETED = "ResourceDeleted"


def create_run(session: Session, wanted: RunCreate) -> RunView:
    """Return the run for ``(uid, spec_digest, attempt)``, made now if it is new.

    Raises NotFound (UnknownTenant).
    """
    get_tenant(session, wanted.tenant)
    row = {
        "id": _new_id(),
        "uid": wanted.uid,
        "spec_digest": wanted.spec_digest,
        "attempt": wanted.attempt,
        "tenant": wanted.tenant,
        "kind": wanted.spec.kind,
        "namespace": wanted.spec.namespace,
        "name": wanted.spec.name,
        "state": RunState.PENDING.value,
        "spec": to_json(wanted.spec),
        "created_at": now(),
    }
    insert_missing(session, TrainingRun, [row], keys=["uid", "spec_digest", "attempt"])
    made = session.scalars(
        select(TrainingRun).where(
            TrainingRun.uid == wanted.uid,
            TrainingRun.spec_digest == wanted.spec_digest,
            TrainingRun.attempt == wanted.attempt,
        )
    ).one()
    return run_view(made)


def get_run(session: Session, run_id: str, *, for_update: bool = False) -> TrainingRun:
    """Return the run; raises NotFound (UnknownRun).

    ``for_update`` waits for whoever changes it now, and shows what they left: a row that this session has
    read before would otherwise stay as it was then.
    """
    query = select(TrainingRun).where(TrainingRun.id == run_id)
    if for_update:
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise NotFound("UnknownRun", f"There is no run {run_id}; its resource may have been deleted.")
    return row


def report_progress(session: Session, run_id: str, progress: RunProgress) -> RunView:
    """Note how far a run is; one that is over stays as it ended. Raises NotFound (UnknownRun)."""
    row = get_run(session, run_id, for_update=True)
    if RunState(row.state) not in FINAL:
        row.state = RunState.RUNNING.value
        row.started_at = row.started_at or now()
        row.progress = to_json(progress)
    return run_view(row)


def fail_run(session: Session, run_id: str, failure: RunFailure) -> RunView:
    """End a run without a result; a failed one keeps its first reason.

    Raises NotFound (UnknownRun), Conflict (RunFinished) when it has succeeded.
    """
    row = get_run(session, run_id, for_update=True)
    if row.state == RunState.SUCCEEDED:
        raise Conflict("RunFinished", f"Run {run_id} has succeeded and cannot fail any more.")
    if row.state != RunState.FAILED:
        _fail(row, failure)
    return run_view(row)


def erase_runs(session: Session, uid: str) -> None:
    """Remove a deleted resource's runs. One still at work is failed and stays, so that its program stops."""
    finals = [state.value for state in FINAL]
    session.execute(delete(TrainingRun).where(TrainingRun.uid == uid, TrainingRun.state.in_(finals)))
    failure = RunFailure(reason=RESOURCE_DELETED, message="The resource was deleted while this run worked.")
    session.execute(
        update(TrainingRun)
        .where(TrainingRun.uid == uid)
        .values(state=RunState.FAILED.value, failure=to_json(failure), finished_at=now())
    )


def adopt_runs(session: Session, old_uid: str, new_uid: str) -> None:
    """Make a resource's runs those of the object that takes its place, so that none is done again."""
    session.execute(update(TrainingRun).where(TrainingRun.uid == old_uid).values(uid=new_uid))


def list_runs(session: Session, *, tenant: str | None, limit: int, cursor: str | None) -> Page[TrainingRun]:
    """Return runs, the newest first, one tenant's or all."""
    query = select(TrainingRun).order_by(TrainingRun.id.desc()).limit(limit + 1)
    if tenant is not None:
        query = query.where(TrainingRun.tenant == tenant)
    before = decode_cursor(cursor, TEXT_CURSOR)
    if before is not None:
        query = query.where(TrainingRun.id < before)
    return page_of(session.scalars(query).all(), limit, lambda row: row.id)


def to_json(model: WireModel) -> dict[str, Any]:
    """Return a wire type as it is stored: the same JSON that travels."""
    return model.model_dump(mode="json", by_alias=True)


def _fail(row: TrainingRun, failure: RunFailure) -> None:
    row.state = RunState.FAILED.value
    row.failure = to_json(failure)
    row.finished_at = now()


def _new_id() -> str:
    """Return a run id that sorts by the time it was made."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"
