"""Uninstallation: HMI's finalizers are removed, so that no deletion waits for an operator."""

import asyncio
import logging
from collections.abc import Sequence

from hmi_api.errors import NotReady
from hmi_api.names import FINALIZER, PLURALS, KindName
from hmi_operator.kubernetes.client import ApiServerConflict, KubernetesClient, Manifest
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.objects import list_objects, patch_object, read_object, ref_of

logger = logging.getLogger(__name__)

_ATTEMPTS = 5


async def remove_finalizers(client: KubernetesClient, lease: Lease, namespaces: Sequence[str] = ()) -> int:
    """Remove HMI's finalizer from every Domain and TaskAdapter; return from how many.

    The lease is taken from its holder and kept for a while after, because an operator that still runs would
    add the finalizers again. The catalog and the artifact store stay as they are.
    """
    await lease.seize()
    keeping = asyncio.create_task(lease.keep())
    removed = 0
    try:
        for kind in PLURALS:
            async for manifest in list_objects(client, kind, namespaces):
                removed += await _remove_finalizer(client, kind, manifest)
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
    await lease.hold_after_exit()
    return removed


async def _remove_finalizer(client: KubernetesClient, kind: KindName, manifest: Manifest) -> bool:
    """Remove the finalizer from one object, valid or not; return whether it was there."""
    ref = ref_of(kind, manifest)
    present: Manifest | None = manifest
    for _ in range(_ATTEMPTS):
        metadata = present["metadata"] if present is not None else {}
        finalizers = metadata.get("finalizers") or []
        if FINALIZER not in finalizers:
            return False
        left = [other for other in finalizers if other != FINALIZER]
        patch = {"metadata": {"finalizers": left, "resourceVersion": metadata["resourceVersion"]}}
        try:
            await patch_object(client, ref, patch)
        except ApiServerConflict:
            present = await read_object(client, ref)
            continue
        logger.info("%s has no finalizer of HMI any more", ref)
        return True
    raise NotReady("Contended", f"{ref} is changed by others faster than its finalizer can be removed.")
