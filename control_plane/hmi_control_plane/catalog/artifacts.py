"""Artifacts: counted while versions name them, erased from the store when none does."""

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hmi_api.artifact_root import open_root
from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_control_plane.catalog.cursors import TEXT_CURSOR, decode_cursor
from hmi_control_plane.catalog.database import Database, insert_missing
from hmi_control_plane.catalog.paging import Page, page_of
from hmi_control_plane.catalog.tables import Artifact
from hmi_control_plane.catalog.times import now

log = logging.getLogger(__name__)

_TIME_TO_COMPLETE = timedelta(days=1)


def artifact_ref(row: Artifact) -> ArtifactRef:
    """Return the artifact as it is named on the wire."""
    return ArtifactRef(kind=ArtifactKind(row.kind), uri=row.uri, digest=row.digest, bytes=row.bytes)


def load_refs(session: Session, digests: Iterable[str]) -> dict[str, ArtifactRef]:
    """Return the artifacts with these digests, by digest."""
    rows = session.scalars(select(Artifact).where(Artifact.digest.in_(set(digests))))
    return {row.digest: artifact_ref(row) for row in rows}


def announce(session: Session, ref: ArtifactRef) -> None:
    """Note an artifact that is about to be published by a run: it is kept for a day, in which the run ends.

    Waits for an eraser that removes the same bytes at this moment; write them after this is committed.
    """
    until = now() + _TIME_TO_COMPLETE
    record(session, [ref], orphaned_at=until)
    session.execute(
        update(Artifact)
        .where(Artifact.digest == ref.digest, Artifact.orphaned_at.is_not(None))
        .values(orphaned_at=until)
    )


def abandon(session: Session, digests: Iterable[str]) -> None:
    """Have artifacts erased that no version needs, without waiting any longer."""
    session.execute(
        update(Artifact)
        .where(Artifact.digest.in_(set(digests)), Artifact.refcount <= 0)
        .values(orphaned_at=now())
    )


def record(session: Session, refs: Iterable[ArtifactRef], *, orphaned_at: datetime | None = None) -> None:
    """Note artifacts that were published; one that no version retains afterwards is an orphan."""
    moment = now()
    rows = {
        ref.digest: {
            "digest": ref.digest,
            "kind": ref.kind.value,
            "uri": ref.uri,
            "bytes": ref.bytes,
            "refcount": 0,
            "created_at": moment,
            "orphaned_at": orphaned_at or moment,
        }
        for ref in refs
    }
    # Sorted, so that two transactions that share artifacts take their locks in one order.
    insert_missing(session, Artifact, [rows[digest] for digest in sorted(rows)])


def retain(session: Session, digests: Iterable[str]) -> None:
    """Count one more version for each digest named; they must be recorded."""
    _add(session, Counter(digests), sign=1)


def release(session: Session, digests: Iterable[str]) -> None:
    """Count one version less for each digest named; what none needs any more becomes an orphan."""
    _add(session, Counter(digests), sign=-1)


def list_artifacts(session: Session, *, limit: int, cursor: str | None) -> Page[Artifact]:
    """Return artifacts by digest."""
    query = select(Artifact).order_by(Artifact.digest).limit(limit + 1)
    after = decode_cursor(cursor, TEXT_CURSOR)
    if after is not None:
        query = query.where(Artifact.digest > after)
    return page_of(session.scalars(query).all(), limit, lambda row: row.digest)


def _add(session: Session, counts: Counter[str], *, sign: int) -> None:
    for digest in sorted(counts):
        session.execute(
            update(Artifact)
            .where(Artifact.digest == digest)
            .values(refcount=Artifact.refcount + sign * counts[digest])
        )
    moment = now()
    orphaned = Artifact.orphaned_at.is_not(None)
    session.execute(
        update(Artifact)
        .where(Artifact.digest.in_(counts), Artifact.refcount > 0, orphaned)
        .values(orphaned_at=None)
    )
    session.execute(
        update(Artifact)
        .where(Artifact.digest.in_(counts), Artifact.refcount <= 0, ~orphaned)
        .values(orphaned_at=moment)
    )


class ArtifactEraser:
    """Removes orphans: their bytes from the store first, then their rows, so that a crash loses neither."""

    def __init__(self, database: Database, root: str) -> None:
        self._database = database
        self._root = root

    def erase_orphans(self) -> int:
        """Erase every orphan; return how many. Safe to repeat and to interrupt."""
        erased = 0
        while self._erase_one():
            erased += 1
        return erased

    def _erase_one(self) -> bool:
        """Erase the oldest orphan, in a transaction of its own: a slow store keeps nobody else waiting."""
        with self._database.write() as session:
            # Locked until it is gone: a run that publishes the same bytes meanwhile waits, then adds them.
            orphan = session.scalars(
                select(Artifact)
                .where(Artifact.orphaned_at <= now())
                .order_by(Artifact.orphaned_at)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if orphan is None:
                return False
            self.remove_folder(orphan.uri)
            session.delete(orphan)
            return True

    def remove_folder(self, uri: str) -> None:
        """Remove a folder of the store; nothing happens when it is gone, or is no folder inside the store."""
        parts = uri.split("/")
        if any(part in {"", ".", ".."} for part in parts):
            log.error("artifact address %r is no folder inside the store; nothing was erased", uri)
            return
        filesystem, root = open_root(self._root)
        folder = "/".join([root, *parts])
        if filesystem.exists(folder):
            filesystem.rm(folder, recursive=True)
