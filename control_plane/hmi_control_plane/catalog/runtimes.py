"""Runtimes: they register, report and go; those that fall silent are lost."""

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, exists, func, select, tuple_
from sqlalchemy.orm import Session, aliased

from hmi_api.errors import InvalidInput
from hmi_api.internal.runtimes import Heartbeat, HeartbeatReply, RuntimeRegistration
from hmi_api.names import adapter_key
from hmi_control_plane import placement
from hmi_control_plane.catalog.cursors import TEXT_CURSOR, decode_cursor
from hmi_control_plane.catalog.database import insert_or_replace
from hmi_control_plane.catalog.paging import Page, page_of
from hmi_control_plane.catalog.runs import to_json
from hmi_control_plane.catalog.tables import AdapterRow, LoadReport, LoadState, Placement, Runtime
from hmi_control_plane.catalog.times import now

_KEYS_A_STATEMENT = 500
_VERSION_DIGITS = 9


def register(session: Session, runtime_id: str, registration: RuntimeRegistration) -> None:
    """Note a runtime that has started. What an earlier incarnation said it holds is void; placements stay.

    Call ``placement.fill`` afterwards, outside this transaction: adapters may have waited for a runtime.
    """
    placement.lock(session)
    moment = now()
    row = session.get(Runtime, runtime_id)
    if row is None:
        # Revisions begin at the clock: an id that comes back never meets one it has seen before.
        revision = time.time_ns() // 1_000_000
        row = Runtime(id=runtime_id, desired_revision=revision, forgotten_revision=revision, placed_bytes=0)
        session.add(row)
    restarted = row.incarnation != registration.incarnation
    if restarted:
        row.registered_at = moment
        row.free_bytes = registration.capacity_bytes
        row.queue_depth = 0
        row.resident = []
    row.url = registration.url
    row.device = registration.device
    row.capacity_bytes = registration.capacity_bytes
    row.incarnation = registration.incarnation
    row.heartbeat_at = moment
    row.draining = False
    row.lost = False
    session.flush()
    if restarted:
        session.execute(delete(LoadReport).where(LoadReport.runtime_id == runtime_id))
    placement.recount(session, runtime_id)


@dataclass(frozen=True, slots=True)
class HeartbeatOutcome:
    """The reply, and whether adapters may have to be placed anew because the runtime came back or drains."""

    reply: HeartbeatReply
    fleet_changed: bool


def heartbeat(session: Session, runtime_id: str, beat: Heartbeat) -> HeartbeatOutcome:
    """Note what a runtime reports; an unknown incarnation is told so and changes nothing."""
    row = session.get(Runtime, runtime_id)
    if row is None or row.incarnation != beat.incarnation:
        return HeartbeatOutcome(HeartbeatReply(known=False, desired_revision=0), fleet_changed=False)
    fleet_changed = row.lost or row.draining != beat.draining
    if fleet_changed:
        placement.lock(session)
    row.heartbeat_at = now()
    row.free_bytes = beat.free_bytes
    row.queue_depth = beat.queue_depth
    row.resident = [to_json(entry) for entry in beat.resident]
    row.draining = beat.draining
    row.lost = False
    _note_residency(session, runtime_id, beat)
    session.flush()
    if fleet_changed:
        placement.recount(session, runtime_id)
    reply = HeartbeatReply(
        known=True,
        desired_revision=row.desired_revision,
        only_here=_only_here(session, runtime_id) if beat.draining else 0,
    )
    return HeartbeatOutcome(reply, fleet_changed=fleet_changed)


def deregister(session: Session, runtime_id: str) -> None:
    """Forget a runtime that has drained; idempotent. Call ``placement.fill`` afterwards."""
    placement.lock(session)
    row = session.get(Runtime, runtime_id)
    if row is None:
        return
    row.lost = True
    session.flush()
    placement.recount(session, runtime_id)
    session.delete(row)


def mark_lost(session: Session, *, silent_for: timedelta) -> list[str]:
    """Give up runtimes without a heartbeat for so long; return their ids.

    Call ``placement.fill`` afterwards.
    """
    placement.lock(session)
    silent = session.scalars(
        select(Runtime).where(Runtime.heartbeat_at < now() - silent_for, ~Runtime.lost).order_by(Runtime.id)
    ).all()
    for row in silent:
        row.lost = True
        session.flush()
        placement.recount(session, row.id)
    return [row.id for row in silent]


def forget_lost(session: Session, *, silent_for: timedelta) -> None:
    """Remove runtimes that were lost so long ago and hold no placement any more."""
    placement.lock(session)
    holds = exists().where(Placement.runtime_id == Runtime.id, Placement.adapter_id.is_not(None))
    session.execute(delete(Runtime).where(Runtime.lost, Runtime.heartbeat_at < now() - silent_for, ~holds))


def list_runtimes(session: Session, *, limit: int, cursor: str | None) -> Page[Runtime]:
    """Return runtimes by id."""
    query = select(Runtime).order_by(Runtime.id).limit(limit + 1)
    after = decode_cursor(cursor, TEXT_CURSOR)
    if after is not None:
        query = query.where(Runtime.id > after)
    return page_of(session.scalars(query).all(), limit, lambda row: row.id)


def list_placements(session: Session, runtime_id: str, *, limit: int, cursor: str | None) -> Page[Placement]:
    """Return what should be served by a runtime, by adapter key."""
    query = (
        select(Placement)
        .where(Placement.runtime_id == runtime_id, Placement.adapter_id.is_not(None))
        .order_by(Placement.adapter_key)
        .limit(limit + 1)
    )
    after = decode_cursor(cursor, TEXT_CURSOR)
    if after is not None:
        query = query.where(Placement.adapter_key > after)
    return page_of(session.scalars(query).all(), limit, lambda row: row.adapter_key)


def _only_here(session: Session, runtime_id: str) -> int:
    """Count the adapters that only a draining runtime serves yet; 0 when nobody else is there at all."""
    staying = (~Runtime.lost, ~Runtime.draining)
    if not session.scalar(select(exists().where(*staying))):
        return 0
    elsewhere = aliased(LoadReport)
    served_elsewhere = exists().where(
        elsewhere.adapter_id == LoadReport.adapter_id,
        elsewhere.state == LoadState.READY,
        Runtime.id == elsewhere.runtime_id,
        *staying,
    )
    wanted = exists().where(
        AdapterRow.id == LoadReport.adapter_id, AdapterRow.current_version == LoadReport.version
    )
    query = select(func.count()).where(
        LoadReport.runtime_id == runtime_id,
        LoadReport.state == LoadState.READY,
        wanted,
        ~served_elsewhere,
    )
    return session.scalar(query) or 0


def _note_residency(session: Session, runtime_id: str, beat: Heartbeat) -> None:
    ready = [_split_key(entry) for entry in beat.ready]
    gone = [_split_key(entry) for entry in beat.gone]
    named = {(tenant, name) for tenant, name, _ in [*ready, *gone]}
    named |= {_split_adapter(failure.adapter) for failure in beat.failed}
    ids = _adapter_ids(session, named)
    moment = now()
    for tenant, name, version in gone:
        adapter_id = ids.get(adapter_key(tenant, name))
        if adapter_id is not None:
            session.execute(
                delete(LoadReport).where(
                    LoadReport.runtime_id == runtime_id,
                    LoadReport.adapter_id == adapter_id,
                    LoadReport.version == version,
                )
            )
    rows = [
        {"key": adapter_key(tenant, name), "version": version, "state": LoadState.READY}
        for tenant, name, version in ready
    ]
    rows += [
        {
            "key": failure.adapter,
            "version": failure.version,
            "state": LoadState.FAILED,
            "reason": failure.reason[:100],
            "message": failure.message,
        }
        for failure in beat.failed
    ]
    insert_or_replace(
        session,
        LoadReport,
        [
            {
                "runtime_id": runtime_id,
                "adapter_id": ids[str(row["key"])],
                "version": row["version"],
                "state": row["state"],
                "reason": row.get("reason", ""),
                "message": row.get("message", ""),
                "updated_at": moment,
            }
            for row in rows
            if row["key"] in ids  # erased meanwhile: the runtime will read of it
        ],
    )


def _adapter_ids(session: Session, named: Collection[tuple[str, str]]) -> dict[str, int]:
    """Return row ids by ``tenant/name``."""
    found: dict[str, int] = {}
    for chunk in _chunks(sorted(named)):
        rows = session.execute(
            select(AdapterRow.tenant, AdapterRow.name, AdapterRow.id).where(
                tuple_(AdapterRow.tenant, AdapterRow.name).in_(chunk)
            )
        )
        found.update({adapter_key(tenant, name): adapter_id for tenant, name, adapter_id in rows})
    return found


def _chunks(items: list[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    for start in range(0, len(items), _KEYS_A_STATEMENT):
        yield items[start : start + _KEYS_A_STATEMENT]


def _split_key(entry: str) -> tuple[str, str, int]:
    """Return tenant, adapter and version of ``tenant/adapter@version``; raises InvalidInput (InvalidKey)."""
    key, _, version = entry.rpartition("@")
    if not version.isdecimal() or len(version) > _VERSION_DIGITS:
        raise InvalidInput("InvalidKey", f"{entry} is not of the form tenant/adapter@version.")
    tenant, name = _split_adapter(key)
    return tenant, name, int(version)


def _split_adapter(key: str) -> tuple[str, str]:
    tenant, _, name = key.partition("/")
    return tenant, name
