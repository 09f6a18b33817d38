"""What a run may publish and fetch through the control plane."""

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from hmi_api.artifacts import ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import DomainRunSpec, RunState
from hmi_control_plane.catalog.artifacts import load_refs
from hmi_control_plane.catalog.database import insert_missing
from hmi_control_plane.catalog.runs import FINAL
from hmi_control_plane.catalog.tables import RunArtifact, TrainingRun
from hmi_control_plane.catalog.views import run_view
from hmi_control_plane.http.errors import Conflict, NotFound


def require_open(run: TrainingRun) -> None:
    """Raise Conflict (RunFinished) when a run is over and publishes nothing more."""
    if RunState(run.state) in FINAL:
        raise Conflict("RunFinished", f"Run {run.id} is over and publishes nothing more.")


def open_runs(session: Session, run_ids: set[str]) -> set[str]:
    """Return those of ``run_ids`` that are runs which may still publish."""
    finals = [state.value for state in FINAL]
    query = select(TrainingRun.id).where(TrainingRun.id.in_(run_ids), TrainingRun.state.not_in(finals))
    return set(session.scalars(query))


def note_published(session: Session, run: TrainingRun, digest: str) -> None:
    """Note that a run published an artifact."""
    insert_missing(session, RunArtifact, [{"run_id": run.id, "digest": digest}])


def was_published_in(session: Session, namespace: str, digest: str) -> bool:
    """Say whether a run of ``namespace`` has published an artifact: who has not, must show its bytes."""
    query = exists().where(
        RunArtifact.digest == digest,
        TrainingRun.id == RunArtifact.run_id,
        TrainingRun.namespace == namespace,
    )
    return bool(session.scalar(select(query)))


def fetchable(session: Session, run: TrainingRun, digest: str) -> ArtifactRef:
    """Return an artifact that a run stands on or has published; raises NotFound (ArtifactNotNamed)."""
    ref = next((ref for ref in _stood_on(run) if ref.digest == digest), None)
    if ref is None and session.get(RunArtifact, (run.id, digest)) is not None:
        ref = load_refs(session, [digest]).get(digest)
    if ref is None:
        raise NotFound("ArtifactNotNamed", f"Run {run.id} names no artifact {digest}.")
    return ref


def require_published(session: Session, run: TrainingRun, refs: list[ArtifactRef]) -> None:
    """Raise InvalidInput (ArtifactNotPublished) unless ``refs`` are what the run published or stands on.

    So that nobody makes somebody else's artifact its own by naming it. A Domain that keeps its parent's
    layers names those.
    """
    published = set(session.scalars(select(RunArtifact.digest).where(RunArtifact.run_id == run.id)))
    published |= {ref.digest for ref in _stood_on(run)}
    known = load_refs(session, [ref.digest for ref in refs])
    for ref in refs:
        if ref.digest not in published or known.get(ref.digest) != ref:
            raise InvalidInput(
                "ArtifactNotPublished",
                f"Run {run.id} did not publish {ref.digest}; publish it, then complete.",
            )


def _stood_on(run: TrainingRun) -> list[ArtifactRef]:
    spec = run_view(run).spec
    domain = spec.parent if isinstance(spec, DomainRunSpec) else spec.domain
    return [domain.layers, *domain.tables] if domain is not None else []
