"""Hearing of resources and namespaces: complete lists by our own requests, and kopf's watches in between.

A watch of kopf's that is refused ends all of them, so what is watched here must not be a matter of rights in
one namespace. Jobs are, and have watches of their own (``job_watch``).

The handlers are thin: they put what they are given into the cache, which wakes whom it concerns.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import kopf

from hmi_api.names import GROUP, VERSION, KindName
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.kinds import NAMESPACES, RESOURCES, Kind
from hmi_operator.kubernetes.login import read_login

logger = logging.getLogger(__name__)

_DELETED = "DELETED"
_WORKERS = 64
"""Objects whose events kopf hands over at once; each is a task of its own meanwhile."""


class _NothingStored(kopf.DiffBaseStorage):
    """What changed since the last time is not asked of kopf, which would copy each object to tell."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        """Return nothing."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return that nothing is stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


async def list_all(api: KubeApi, cache: ResourceCache, namespaces: Sequence[str] = ()) -> None:
    """Bring the cache to what the API server has now; with ``namespaces``, in these alone."""
    async for manifest in _namespaces(api, namespaces):
        cache.see_namespace(manifest)
    for name, kind in RESOURCES.items():
        with cache.listing(name) as take:
            async for manifest in objects(api, kind, namespaces):
                take(manifest)


async def _namespaces(api: KubeApi, namespaces: Sequence[str]) -> AsyncIterator[Manifest]:
    if not namespaces:
        async for page in api.pages(NAMESPACES):
            for manifest in page:
                yield manifest
    for name in namespaces:
        found = await api.get(NAMESPACES, None, name)
        if found is not None:
            yield found


async def objects(api: KubeApi, kind: Kind, namespaces: Sequence[str]) -> AsyncIterator[Manifest]:
    """Go through all objects of a kind; with ``namespaces``, those in these alone."""
    wanted: Sequence[str | None] = namespaces or [None]
    for namespace in wanted:
        async for page in api.pages(kind, namespace):
            for manifest in page:
                yield manifest


def handlers(cache: ResourceCache) -> kopf.OperatorRegistry:
    """Return kopf's registry with a handler for each kind that is watched."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo:
        return await asyncio.to_thread(read_login, settings)

    def on_resource(name: KindName, event: kopf.RawEvent) -> None:
        manifest = _plain(event)
        if event["type"] == _DELETED:
            cache.see_deleted(name, manifest)
        else:
            cache.see(name, manifest)

    @kopf.on.event(GROUP, VERSION, RESOURCES["Domain"].plural, registry=registry)
    async def domain(event: kopf.RawEvent, **_: Any) -> None:
        on_resource("Domain", event)

    @kopf.on.event(GROUP, VERSION, RESOURCES["TaskAdapter"].plural, registry=registry)
    async def task_adapter(event: kopf.RawEvent, **_: Any) -> None:
        on_resource("TaskAdapter", event)

    @kopf.on.event("", "v1", NAMESPACES.plural, registry=registry)
    async def namespace(event: kopf.RawEvent, **_: Any) -> None:
        cache.see_namespace(_plain(event), deleted=event["type"] == _DELETED)

    return registry


def watch_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: nothing is posted, stored or scanned, and events are handed over in bounds."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.worker_limit = _WORKERS
    settings.queueing.idle_timeout = 0.5
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.persistence.diffbase_storage = _NothingStored()
    settings.networking.trust_env = False  # no proxy between HMI and the API server
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, 8, 13, 21, *[30] * 20)
    return settings


def _plain(event: kopf.RawEvent) -> Manifest:
    manifest: Any = event["object"]
    plain: Manifest = manifest
    return plain
