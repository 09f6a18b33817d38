"""Letting go of everything: HMI's finalizers are taken off, so that no deletion waits for an operator."""

import asyncio
import logging
from collections.abc import Sequence

from hmi_api.errors import NotReady
from hmi_api.names import FINALIZER
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.errors import Conflict
from hmi_operator.kubernetes.kinds import RESOURCES, Kind
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.watch import objects

logger = logging.getLogger(__name__)

_TRIES = 5


async def release_all(api: KubeApi, lease: Lease, namespaces: Sequence[str] = ()) -> int:
    """Take HMI's finalizer off every Domain and TaskAdapter; return how many had it.

    The lease is taken from whoever has it and kept for a while after, since an operator that is still there
    would put the finalizers on again. What the catalog and the artifact store have stays.
    """
    await lease.seize()
    keeping = asyncio.create_task(lease.keep())
    released = 0
    try:
        for kind in RESOURCES.values():
            async for manifest in objects(api, kind, namespaces):
                released += await _release(api, kind, manifest)
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
    await lease.hold_on()
    return released


async def _release(api: KubeApi, kind: Kind, manifest: Manifest) -> bool:
    """Take the finalizer off one object, whatever its spec says; return whether it was there."""
    present: Manifest | None = manifest
    for _ in range(_TRIES):
        metadata = present["metadata"] if present is not None else {}
        held = metadata.get("finalizers") or []
        if FINALIZER not in held:
            return False
        namespace, name = metadata["namespace"], metadata["name"]
        left = [other for other in held if other != FINALIZER]
        patch = {"metadata": {"finalizers": left, "resourceVersion": metadata["resourceVersion"]}}
        try:
            await api.merge_patch(kind, namespace, name, patch)
        except Conflict:
            present = await api.get(kind, namespace, name)
            continue
        logger.info("%s %s/%s is no longer held", kind.kind, namespace, name)
        return True
    raise NotReady(
        "Contended", f"{kind.kind} {manifest['metadata']['name']} is changed by others all the time."
    )
