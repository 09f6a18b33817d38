"""kopf's side of the operator: settings, and handlers for watch events and admission reviews.

The handlers are thin: they put objects into the cache, which enqueues the resources to reconcile. A refused
watch of kopf's ends all of its watches, so nothing is watched here that needs permissions in single
namespaces; Jobs do, and have their own watches (``jobs.job_watch``).
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import kopf

from hmi_api.errors import NotReady
from hmi_api.names import GROUP, PLURALS, VERSION, KindName
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.client import (
    PAGE_SIZE,
    KubernetesClient,
    Manifest,
    find,
    list_items,
    metadata_of,
)
from hmi_operator.kubernetes.objects import list_objects
from hmi_operator.kubernetes.webhook import UNPROCESSABLE, AdmissionReviewer

logger = logging.getLogger(__name__)

_DELETED = "DELETED"
_WORKERS = 64
"""Objects whose events kopf handles at once; each is a task of its own meanwhile."""


class _NothingStored(kopf.DiffBaseStorage):
    """Stores no last-handled state: event handlers need none, and kopf would copy each object for it."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        """Return nothing."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return that nothing is stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


async def list_all(client: KubernetesClient, cache: ResourceCache, namespaces: Sequence[str] = ()) -> None:
    """Bring the cache up to date with complete lists; with ``namespaces``, in these alone."""
    if namespaces:
        for name in namespaces:
            found = await find(client.core.read_namespace(name))
            if found is not None:
                cache.put_namespace(name, metadata_of(found).labels)
    else:
        async for namespace in list_items(client.core.list_namespace):
            cache.put_namespace(namespace.metadata.name, namespace.metadata.labels)
    for kind in PLURALS:
        with cache.listing(kind) as observe:
            async for manifest in list_objects(client, kind, namespaces):
                observe(manifest)


def build_registry(cache: ResourceCache, reviewer: AdmissionReviewer | None = None) -> kopf.OperatorRegistry:
    """Return kopf's registry with the handlers; those for admission reviews only with a reviewer."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo:
        return await asyncio.to_thread(_login, settings)

    for kind, plural in PLURALS.items():
        _add_handlers(registry, kind, plural, cache, reviewer)

    @kopf.on.event("", "v1", "namespaces", registry=registry)
    async def observe_namespace(event: kopf.RawEvent, **_: Any) -> None:
        metadata = _manifest(event)["metadata"]
        cache.put_namespace(metadata["name"], metadata.get("labels"), deleted=event["type"] == _DELETED)

    return registry


def _add_handlers(
    registry: kopf.OperatorRegistry,
    kind: KindName,
    plural: str,
    cache: ResourceCache,
    reviewer: AdmissionReviewer | None,
) -> None:
    """Add the handlers of one kind."""

    @kopf.on.event(GROUP, VERSION, plural, id=f"observe-{plural}", registry=registry)
    async def observe(event: kopf.RawEvent, **_: Any) -> None:
        if event["type"] == _DELETED:
            cache.observe_deleted(kind, _manifest(event))
        else:
            cache.observe(kind, _manifest(event))

    if reviewer is None:
        return

    @kopf.on.validate(
        GROUP, VERSION, plural, id=f"validate-{plural}", operations=["CREATE", "UPDATE"], registry=registry
    )
    async def validate(warnings: list[str], subresource: str | None, **review: Any) -> None:
        if review["new"] is None or subresource is not None:  # kopf does not filter these out
            return
        decision = reviewer.review(review["new"], review["old"])
        warnings.extend(decision.warnings)
        if decision.rejection is not None:
            raise kopf.AdmissionError(decision.rejection, code=UNPROCESSABLE)


def build_settings(webhook: kopf.WebhookServerProtocol | None = None) -> kopf.OperatorSettings:
    """Return kopf's settings: it posts, stores and rescans nothing, and handles events in limited number."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.worker_limit = _WORKERS
    settings.queueing.idle_timeout = 0.5
    settings.watching.chunk_size = PAGE_SIZE
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.persistence.diffbase_storage = _NothingStored()
    settings.networking.trust_env = False  # no proxy between the operator and the API server
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, 8, 13, 21, *[30] * 20)
    settings.admission.server = webhook
    return settings


def _login(settings: kopf.OperatorSettings) -> kopf.ConnectionInfo:
    """Return what the service account's files say, or else the kubeconfig. Raises ``NotReady``."""
    in_cluster = kopf.login_with_service_account(settings=settings)
    found = in_cluster or kopf.login_with_kubeconfig(settings=settings)
    if found is None:
        raise NotReady("NoCluster", "Neither a service account nor KUBECONFIG says where the API server is.")
    return found


def _manifest(event: kopf.RawEvent) -> Manifest:
    manifest: Any = event["object"]
    plain: Manifest = manifest
    return plain
