"""Letting go of everything: HMI's finalizers are taken off, so that no deletion waits for an operator."""

import asyncio
import logging
from collections.abc import Sequence

from hmi_api.names import FINALIZER
from hmi_operator.kube.api import KubeApi
from hmi_operator.kube.cache import ResourceCache
from hmi_operator.kube.lease import Lease
from hmi_operator.kube.store import KubeResourceStore
from hmi_operator.kube.watch import list_all

logger = logging.getLogger(__name__)


async def release_all(api: KubeApi, lease: Lease, namespaces: Sequence[str] = ()) -> int:
    """Take HMI's finalizer off every Domain and TaskAdapter; return how many had it.

    The lease is taken from whoever has it and kept for a while after, since an operator that is still there
    would put the finalizers on again. What the catalog and the artifact store have stays.
    """
    await lease.seize()
    keeping = asyncio.create_task(lease.keep())
    try:
        cache = ResourceCache()
        store = KubeResourceStore(api, cache)
        await list_all(api, cache, namespaces)
        released = 0
        for ref in cache.refs():
            resource = cache.get(ref)
            if resource is not None and FINALIZER in resource.metadata.finalizers:
                await store.remove_finalizer(ref, resource.metadata.uid, FINALIZER)
                logger.info("released %s", ref)
                released += 1
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
    await lease.hold_on()
    return released
