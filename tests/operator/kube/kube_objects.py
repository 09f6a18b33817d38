"""Objects of any kind on an API server, as a user's tool reads and writes them."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from hmi_api.names import GROUP, VERSION
from hmi_operator.kubernetes.client import MERGE_PATCH, PAGE_SIZE, KubernetesClient, Manifest, find


@dataclass(frozen=True)
class Kind:
    """A kind of object: its API group ("" for the core), version, plural and name."""

    group: str
    version: str
    plural: str
    kind: str

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Return the path of an object, or of a list; without ``namespace`` of all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        within = f"/namespaces/{namespace}" if namespace else ""
        parts = [part for part in (self.plural, name, subresource) if part]
        return f"{root}{within}/{'/'.join(parts)}"


DOMAINS = Kind(GROUP, VERSION, "domains", "Domain")
TASK_ADAPTERS = Kind(GROUP, VERSION, "taskadapters", "TaskAdapter")
NAMESPACES = Kind("", "v1", "namespaces", "Namespace")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
JOBS = Kind("batch", "v1", "jobs", "Job")
PODS = Kind("", "v1", "pods", "Pod")
EVENTS = Kind("events.k8s.io", "v1", "events", "Event")
KINDS = {kind.kind: kind for kind in (DOMAINS, TASK_ADAPTERS)}


@dataclass(frozen=True)
class Objects:
    """Requests for objects of any kind."""

    client: KubernetesClient

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        return await find(self._send("GET", kind.path(namespace, name)))

    async def create(self, kind: Kind, namespace: str | None, body: Manifest) -> Manifest:
        return await self._send("POST", kind.path(namespace), body=body)

    async def merge_patch(
        self, kind: Kind, namespace: str | None, name: str, patch: Manifest, subresource: str | None = None
    ) -> Manifest | None:
        path = kind.path(namespace, name, subresource)
        return await find(self._send("PATCH", path, body=patch, content_type=MERGE_PATCH))

    async def delete(self, kind: Kind, namespace: str | None, name: str) -> None:
        body = {"propagationPolicy": "Background"}
        await find(self._send("DELETE", kind.path(namespace, name), body=body))

    async def list(self, kind: Kind, namespace: str | None = None, **query: str) -> AsyncIterator[Manifest]:
        async for page in self.pages(kind, namespace, **query):
            for item in page["items"]:
                yield item

    async def pages(self, kind: Kind, namespace: str | None = None, **query: str) -> AsyncIterator[Manifest]:
        token = ""
        while True:
            wanted = {"limit": str(PAGE_SIZE), **query} | ({"continue": token} if token else {})
            page = await self._send("GET", kind.path(namespace), wanted)
            yield page
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def watch(
        self, kind: Kind, namespace: str | None, version: str, **query: str
    ) -> AsyncIterator[Manifest]:
        """Give the events of one watch."""
        wanted = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", **query}
        path = kind.path(namespace)
        param = await self.client.api_client.param_serialize("GET", path, query_params=list(wanted.items()))
        response = await self.client.api_client.call_api(*param, _preload_content=False)
        try:
            async for line in response.response.content:
                yield json.loads(line)
        finally:
            response.response.release()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Manifest | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        api = self.client.api_client
        param = await api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Content-Type": content_type, "Accept": "application/json"},
            body=body,
        )
        response = await api.call_api(*param)
        answer: Manifest = json.loads(response.data)
        return answer
