"""Artifacts: reference-counted by versions, deleted from the store when no version needs them."""

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hmi_api.artifact_root import open_root
from hmi_api.artifacts import ArtifactRef
from hmi_control_plane.catalog.database import Database, insert_missing, utc_now
from hmi_control_plane.catalog.tables import Artifact

log = logging.getLogger(__name__)

_TIME_TO_COMPLETE = timedelta(days=1)


def load_refs(session: Session, digests: Iterable[str]) -> dict[str, ArtifactRef]:
    """Return the artifacts with these digests, by digest."""
    rows = session.scalars(select(Artifact).where(Artifact.digest.in_(set(digests))))
    return {row.digest: ArtifactRef.model_validate(row) for row in rows}


def record_pending(session: Session, ref: ArtifactRef) -> None:
    """Record an artifact that a run is about to publish; it is kept for a day, so that the run can complete.

    Waits for a garbage collector that is deleting the same files. Write the files after this is committed.
    """
    until = utc_now() + _TIME_TO_COMPLETE
    record(session, [ref], orphaned_at=until)
    session.execute(
        update(Artifact)
        .where(Artifact.digest == ref.digest, Artifact.orphaned_at.is_not(None))
        .values(orphaned_at=until)
    )


def discard(session: Session, digests: Iterable[str]) -> None:
    """Let the garbage collector delete those of the artifacts that no version needs, from now on."""
    session.execute(
        update(Artifact)
        .where(Artifact.digest.in_(set(digests)), Artifact.refcount <= 0)
        .values(orphaned_at=utc_now())
    )


def record(session: Session, refs: Iterable[ArtifactRef], *, orphaned_at: datetime | None = None) -> None:
    """Record published artifacts; one that no version retains afterwards will be deleted."""
    now = utc_now()
    rows = {
        ref.digest: {
            **ref.model_dump(mode="json"),
            "refcount": 0,
            "created_at": now,
            "orphaned_at": orphaned_at or now,
        }
        for ref in refs
    }
    # Sorted, so that two transactions that share artifacts lock the rows in the same order.
    insert_missing(session, Artifact, [rows[digest] for digest in sorted(rows)])


def retain(session: Session, digests: Iterable[str]) -> None:
    """Add one reference to each artifact; they must be recorded."""
    _add(session, Counter(digests), sign=1)


def release(session: Session, digests: Iterable[str]) -> None:
    """Remove one reference from each artifact; one without references will be deleted."""
    _add(session, Counter(digests), sign=-1)


def _add(session: Session, counts: Counter[str], *, sign: int) -> None:
    for digest in sorted(counts):
        session.execute(
            update(Artifact)
            .where(Artifact.digest == digest)
            .values(refcount=Artifact.refcount + sign * counts[digest])
        )
    orphaned = Artifact.orphaned_at.is_not(None)
    changed = update(Artifact).where(Artifact.digest.in_(counts))
    session.execute(changed.where(Artifact.refcount > 0, orphaned).values(orphaned_at=None))
    session.execute(changed.where(Artifact.refcount <= 0, ~orphaned).values(orphaned_at=utc_now()))


class ArtifactGarbageCollector:
    """Deletes artifacts that no version needs: first the files, then the row, so that a crash leaks none."""

    def __init__(self, database: Database, root: str) -> None:
        self._database = database
        self._root = root

    def collect(self) -> int:
        """Delete all artifacts that are due; return how many. Safe to repeat and to interrupt."""
        deleted = 0
        while self._delete_one():
            deleted += 1
        return deleted

    def _delete_one(self) -> bool:
        """Delete the oldest one in a transaction of its own, so that a slow store delays no other writer."""
        with self._database.write() as session:
            # The lock makes a run that publishes the same files wait, and then write them again.
            orphan = session.scalars(
                select(Artifact)
                .where(Artifact.orphaned_at <= utc_now())
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
        """Delete a folder of the store; does nothing if it does not exist or lies outside the store."""
        parts = uri.split("/")
        if any(part in {"", ".", ".."} for part in parts):
            log.error("artifact URI %r is no folder inside the store; nothing was deleted", uri)
            return
        filesystem, root = open_root(self._root)
        folder = "/".join([root, *parts])
        if filesystem.exists(folder):
            filesystem.rm(folder, recursive=True)
