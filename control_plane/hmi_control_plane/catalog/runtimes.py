"""Runtimes: registration, heartbeats, deregistration, loss after missed heartbeats, and precision choices."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, exists, func, select, tuple_
from sqlalchemy.orm import Session, aliased

from hmi_api.internal.precision import EngineReports, PrecisionChoice, PrecisionKey
from hmi_api.internal.runtimes import Heartbeat, HeartbeatReply, RuntimeRegistration
from hmi_api.names import adapter_key
from hmi_control_plane.catalog import placement
from hmi_control_plane.catalog.database import insert_missing, insert_or_replace, utc_now
from hmi_control_plane.catalog.paging import Page, PageRequest, list_page
from hmi_control_plane.catalog.runs import to_json
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    LoadReport,
    LoadState,
    Placement,
    RecordedChoice,
    Runtime,
)

_MAX_KEYS_PER_STATEMENT = 500


def register(session: Session, runtime_id: str, registration: RuntimeRegistration) -> None:
    """Register a runtime that has started. Reports of an earlier incarnation are deleted; placements stay.

    Call ``placement.place_missing_replicas`` afterwards, outside this transaction: adapters may be waiting
    for a runtime.
    """
    placement.lock(session)
    now = utc_now()
    row = session.get(Runtime, runtime_id)
    if row is None:
        # Revisions start at the current time, so that an id that is registered again sees only new ones.
        revision = time.time_ns() // 1_000_000
        row = Runtime(
            id=runtime_id,
            desired_revision=revision,
            forgotten_revision=revision,
            placed_bytes=0,
            placed_table_bytes=0,
        )
        session.add(row)
    restarted = row.incarnation != registration.incarnation
    if restarted:
        row.registered_at = now
        row.free_bytes = registration.capacity_bytes
        row.queue_depth = 0
        row.resident = []
        row.engines = []
    row.url = registration.url
    row.device = registration.device
    row.capacity_bytes = registration.capacity_bytes
    row.host_capacity_bytes = registration.host_bytes
    row.table_capacity_bytes = registration.table_bytes
    row.incarnation = registration.incarnation
    row.heartbeat_at = now
    row.draining = False
    row.lost = False
    session.flush()
    if restarted:
        session.execute(delete(LoadReport).where(LoadReport.runtime_id == runtime_id))
    placement.recount_missing_replicas(session, runtime_id)


@dataclass(frozen=True, slots=True)
class HeartbeatOutcome:
    """The reply, and whether the runtime came back or started to drain, so that placements must change."""

    reply: HeartbeatReply
    fleet_changed: bool


def heartbeat(session: Session, runtime_id: str, beat: Heartbeat) -> HeartbeatOutcome:
    """Record a runtime's report. For an unknown incarnation change nothing and reply ``known=False``."""
    row = session.get(Runtime, runtime_id)
    if row is None or row.incarnation != beat.incarnation:
        return HeartbeatOutcome(HeartbeatReply(known=False, desired_revision=0), fleet_changed=False)
    fleet_changed = row.lost or row.draining != beat.draining
    if fleet_changed:
        placement.lock(session)
    row.heartbeat_at = utc_now()
    row.free_bytes = beat.free_bytes
    row.queue_depth = beat.queue_depth
    row.resident = [to_json(entry) for entry in beat.resident]
    row.draining = beat.draining
    row.lost = False
    _record_load_reports(session, runtime_id, beat)
    session.flush()
    if fleet_changed:
        placement.recount_missing_replicas(session, runtime_id)
    reply = HeartbeatReply(
        known=True,
        desired_revision=row.desired_revision,
        only_here=_only_here(session, runtime_id) if beat.draining else 0,
    )
    return HeartbeatOutcome(reply, fleet_changed=fleet_changed)


def record_engines(session: Session, runtime_id: str, reports: EngineReports) -> None:
    """Record the precision of each engine; do nothing for an unknown incarnation, which registers again."""
    row = session.get(Runtime, runtime_id)
    if row is None or row.incarnation != reports.incarnation:
        return
    row.pool, row.processor = reports.pool, reports.processor
    row.engines = [to_json(engine) for engine in reports.engines]


def find_choice(session: Session, key: PrecisionKey) -> PrecisionChoice | None:
    """Return the precision choice for ``key``; None if none is recorded."""
    choice = session.scalar(select(RecordedChoice.choice).filter_by(**key.model_dump()))
    return None if choice is None else PrecisionChoice.model_validate(choice)


def record_choice(
    session: Session, runtime_id: str, key: PrecisionKey, proposal: PrecisionChoice
) -> PrecisionChoice | None:
    """Record ``proposal`` unless there is a choice already; return the one that is recorded then.

    An insertion waits for a concurrent one of the same key, and the next statement reads what that one wrote.
    """
    row = {
        **key.model_dump(),
        "choice": to_json(proposal),
        "runtime_id": runtime_id,
        "chosen_at": utc_now(),
    }
    insert_missing(session, RecordedChoice, [row], keys=list(PrecisionKey.model_fields))
    return find_choice(session, key)


def delete_choice(session: Session, choice_id: int) -> None:
    """Delete a precision choice; idempotent."""
    session.execute(delete(RecordedChoice).where(RecordedChoice.id == choice_id))


def deregister(session: Session, runtime_id: str) -> None:
    """Delete a runtime that has drained; idempotent. Call ``placement.place_missing_replicas`` afterwards."""
    placement.lock(session)
    row = session.get(Runtime, runtime_id)
    if row is None:
        return
    row.lost = True
    session.flush()
    placement.recount_missing_replicas(session, runtime_id)
    session.delete(row)


def mark_lost(session: Session, *, silent_for: timedelta) -> list[str]:
    """Mark runtimes as lost that sent no heartbeat for ``silent_for``; return their ids.

    Call ``placement.place_missing_replicas`` afterwards.
    """
    placement.lock(session)
    silent = session.scalars(
        select(Runtime)
        .where(Runtime.heartbeat_at < utc_now() - silent_for, ~Runtime.lost)
        .order_by(Runtime.id)
    ).all()
    for row in silent:
        row.lost = True
        session.flush()
        placement.recount_missing_replicas(session, row.id)
    return [row.id for row in silent]


def delete_lost(session: Session, *, silent_for: timedelta) -> None:
    """Delete lost runtimes that sent no heartbeat for ``silent_for`` and have no placement any more."""
    placement.lock(session)
    has_placement = exists().where(Placement.runtime_id == Runtime.id, Placement.adapter_id.is_not(None))
    session.execute(
        delete(Runtime).where(Runtime.lost, Runtime.heartbeat_at < utc_now() - silent_for, ~has_placement)
    )


def list_placements(session: Session, runtime_id: str, page: PageRequest) -> Page[Placement]:
    """Return the placements on a runtime, by adapter key."""
    placed = Placement.adapter_id.is_not(None)
    return list_page(session, Placement, Placement.adapter_key, page, placed, runtime_id=runtime_id)


def _only_here(session: Session, runtime_id: str) -> int:
    """Return how many adapters only this draining runtime has loaded; 0 if there is no other runtime."""
    available = (~Runtime.lost, ~Runtime.draining)
    if not session.scalar(select(exists().where(*available))):
        return 0
    elsewhere = aliased(LoadReport)
    loaded_elsewhere = exists().where(
        elsewhere.adapter_id == LoadReport.adapter_id,
        elsewhere.state == LoadState.READY,
        Runtime.id == elsewhere.runtime_id,
        *available,
    )
    is_current = exists().where(
        AdapterRow.id == LoadReport.adapter_id, AdapterRow.current_version == LoadReport.version
    )
    query = select(func.count()).where(
        LoadReport.runtime_id == runtime_id,
        LoadReport.state == LoadState.READY,
        is_current,
        ~loaded_elsewhere,
    )
    return session.scalar(query) or 0


def _record_load_reports(session: Session, runtime_id: str, beat: Heartbeat) -> None:
    ids = _adapter_ids(session, {entry.adapter for entry in [*beat.ready, *beat.gone, *beat.failed]})
    now = utc_now()
    for entry in beat.gone:
        adapter_id = ids.get(entry.adapter)
        if adapter_id is not None:
            session.execute(
                delete(LoadReport).where(
                    LoadReport.runtime_id == runtime_id,
                    LoadReport.adapter_id == adapter_id,
                    LoadReport.version == entry.version,
                )
            )
    reports = {(entry.adapter, entry.version): (LoadState.READY, "", "") for entry in beat.ready}
    for failure in beat.failed:  # after ready: a version that serves may have failed to take another table
        state = LoadState.READY if failure.serves else LoadState.FAILED
        reports[failure.adapter, failure.version] = (state, failure.reason[:100], failure.message)
    insert_or_replace(
        session,
        LoadReport,
        [
            {
                "runtime_id": runtime_id,
                "adapter_id": ids[adapter],
                "version": version,
                "state": state,
                "reason": reason,
                "message": message,
                "updated_at": now,
            }
            for (adapter, version), (state, reason, message) in reports.items()
            if adapter in ids  # else it was deleted; the runtime will read that
        ],
    )


def _adapter_ids(session: Session, keys: Collection[str]) -> dict[str, int]:
    """Return row ids by ``tenant/name``."""
    found: dict[str, int] = {}
    names = sorted((tenant, name) for tenant, _, name in (key.partition("/") for key in keys))
    for start in range(0, len(names), _MAX_KEYS_PER_STATEMENT):
        chunk = names[start : start + _MAX_KEYS_PER_STATEMENT]
        rows = session.execute(
            select(AdapterRow.tenant, AdapterRow.name, AdapterRow.id).where(
                tuple_(AdapterRow.tenant, AdapterRow.name).in_(chunk)
            )
        )
        found.update({adapter_key(tenant, name): adapter_id for tenant, name, adapter_id in rows})
    return found
