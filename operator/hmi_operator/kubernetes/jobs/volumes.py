"""Volumes of a training pod: its work folder, scratch space, its token, and the data that its spec names."""

from collections.abc import Iterable
from typing import Any

from hmi_api.resources.data_addresses import Mounted, MountKind, mounted
from hmi_operator.kubernetes.jobs.settings import TrainerSettings

WORK_DIR = "/var/lib/hmi"
MOUNTS_DIR = "/mnt/hmi"
TOKEN_DIR = "/var/run/secrets/hmi"
TOKEN_FILE = "token"

_TOKEN_SECONDS = 3600
_SCRATCH_SIZE = "1Gi"

Volume = dict[str, Any]
Mount = dict[str, Any]


def own_volumes(claim: str, settings: TrainerSettings) -> tuple[list[Volume], list[Mount]]:
    """Return the volumes that every training pod has, and their mounts; ``claim`` names the work volume."""
    work: Volume = {"name": "work"}
    if settings.checkpoint_size:
        work["persistentVolumeClaim"] = {"claimName": claim}
    else:
        work["emptyDir"] = {}
    token = {
        "serviceAccountToken": {
            "audience": settings.audience,
            "expirationSeconds": _TOKEN_SECONDS,
            "path": TOKEN_FILE,
        }
    }
    volumes = [
        work,
        {"name": "scratch", "emptyDir": {"sizeLimit": _SCRATCH_SIZE}},
        {"name": "token", "projected": {"sources": [token]}},
    ]
    mounts: list[Mount] = [
        {"name": "work", "mountPath": WORK_DIR},
        {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 -- a volume of the pod's own
        {"name": "token", "mountPath": TOKEN_DIR, "readOnly": True},
    ]
    return volumes, mounts


def data_volumes(uris: Iterable[str]) -> tuple[list[Volume], list[Mount]]:
    """Return volumes and read-only mounts of the ConfigMaps and claims that addresses name, each once.

    Raises ``InvalidInput`` AddressMalformed.
    """
    named: dict[tuple[MountKind, str], Mounted] = {}
    for uri in uris:
        found = mounted(uri)
        if found is not None:
            named.setdefault((found.kind, found.name), found)
    volumes: list[Volume] = []
    mounts: list[Mount] = []
    for number, (kind, name) in enumerate(sorted(named)):
        volumes.append({"name": f"data-{number}", **_source(kind, name)})
        path = f"{MOUNTS_DIR}/{kind.value}/{name}"
        mounts.append({"name": f"data-{number}", "mountPath": path, "readOnly": True})
    return volumes, mounts


def _source(kind: MountKind, name: str) -> dict[str, Any]:
    if kind is MountKind.CONFIG_MAP:
        return {"configMap": {"name": name}}
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
