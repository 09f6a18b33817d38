"""Adapters for elsewhere: a published one written as a PEFT folder."""

import tempfile
from pathlib import Path

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.peft.exporter import ExportedHead, export_peft
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.artifacts.store import ArtifactStore

FAMILY, BASE_URI = "family", "baseUri"
"""Fields that a published adapter's manifest has beside the adapter's own configuration."""


def export_artifact(artifact: str, artifacts: str, out: Path) -> ExportedHead:
    """Write the adapter ``artifact`` (its uri in the store, or its digest) as a PEFT folder ``out``.

    Returns where the head is: in the folder's own tensors, or beside them. Raises what fetching raises,
    and ``InvalidInput`` NotAnAdapter, NotExportable.
    """
    ref = _reference(artifact)
    store = ArtifactStore(artifacts)
    config = store.manifest(ref).config
    with tempfile.TemporaryDirectory() as cache:
        weights = AdapterWeights.load(store.fetch(ref, Path(cache)))
    return export_peft(weights, str(config[FAMILY]), out, str(config[BASE_URI]))


def _reference(artifact: str) -> ArtifactRef:
    digest = artifact.rpartition("/")[2].removeprefix("sha256:")
    kind = ArtifactKind.ADAPTER
    folder = artifact.rpartition("/")[0]
    if folder not in ("", kind.value.lower()):
        raise InvalidInput(
            "NotAnAdapter", f"{artifact} is no adapter; give the artifact of a TaskAdapter, adapter/..."
        )
    return ArtifactRef(kind=kind, uri=f"{kind.value.lower()}/{digest}", digest=f"sha256:{digest}", bytes=0)
