"""Operations on core objects (``/api/v1``): namespaces, pods, PersistentVolumeClaims and Events.

The client's own ``CoreV1Api`` has a method for each of its 200 operations and takes 17 MiB of memory once
it is imported. This class has the ones that the operator uses, under the same names and with the client's
models.
"""

from typing import Any, TypeVar, cast
from urllib.parse import quote

from kubernetes.aio.client import (
    ApiClient,
    CoreV1EventList,
    V1DeleteOptions,
    V1Namespace,
    V1NamespaceList,
    V1PersistentVolumeClaim,
    V1PersistentVolumeClaimList,
    V1PodList,
)

_JSON = "application/json"
_MERGE_PATCH = "application/merge-patch+json"
ModelT = TypeVar("ModelT")


class CoreApi:
    """The operator's part of ``CoreV1Api``; every method raises what ``BoundedApiClient`` raises.

    ``selectors`` of the list methods are ``label_selector``, ``field_selector``, ``limit`` and ``_continue``.
    """

    def __init__(self, api_client: ApiClient) -> None:
        self._api_client = api_client

    async def read_namespace(self, name: str) -> V1Namespace:
        """Return a namespace."""
        return await self._request("GET", V1Namespace, "namespaces", name)

    async def list_namespace(self, **selectors: Any) -> V1NamespaceList:
        """Return one page of the namespaces."""
        return await self._request("GET", V1NamespaceList, "namespaces", query=selectors)

    async def list_namespaced_pod(self, namespace: str, **selectors: Any) -> V1PodList:
        """Return one page of a namespace's pods."""
        return await self._request("GET", V1PodList, *_in(namespace, "pods"), query=selectors)

    async def list_namespaced_event(self, namespace: str, **selectors: Any) -> CoreV1EventList:
        """Return one page of a namespace's Events."""
        return await self._request("GET", CoreV1EventList, *_in(namespace, "events"), query=selectors)

    async def list_namespaced_persistent_volume_claim(
        self, namespace: str, **selectors: Any
    ) -> V1PersistentVolumeClaimList:
        """Return one page of a namespace's PersistentVolumeClaims."""
        path = _in(namespace, "persistentvolumeclaims")
        return await self._request("GET", V1PersistentVolumeClaimList, *path, query=selectors)

    async def create_namespaced_persistent_volume_claim(
        self, namespace: str, body: V1PersistentVolumeClaim
    ) -> V1PersistentVolumeClaim:
        """Create a PersistentVolumeClaim and return it."""
        path = _in(namespace, "persistentvolumeclaims")
        return await self._request("POST", V1PersistentVolumeClaim, *path, body=body)

    async def patch_namespaced_persistent_volume_claim(
        self, name: str, namespace: str, body: dict[str, Any]
    ) -> V1PersistentVolumeClaim:
        """Apply a JSON merge patch to a PersistentVolumeClaim and return it."""
        path = _in(namespace, "persistentvolumeclaims", name)
        return await self._request(
            "PATCH", V1PersistentVolumeClaim, *path, body=body, content_type=_MERGE_PATCH
        )

    async def delete_namespaced_persistent_volume_claim(
        self, name: str, namespace: str, body: V1DeleteOptions
    ) -> V1PersistentVolumeClaim:
        """Delete a PersistentVolumeClaim; return it as it is while it is being deleted."""
        path = _in(namespace, "persistentvolumeclaims", name)
        return await self._request("DELETE", V1PersistentVolumeClaim, *path, body=body)

    async def _request(
        self,
        method: str,
        model: type[ModelT],
        *path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        content_type: str = _JSON,
    ) -> ModelT:
        parameters = [
            (_QUERY.get(name, name), value) for name, value in (query or {}).items() if value is not None
        ]
        request = await self._api_client.param_serialize(
            method=method,
            resource_path="/api/v1/" + "/".join(quote(part, safe="") for part in path),
            query_params=parameters,
            header_params={"Accept": _JSON} | ({"Content-Type": content_type} if body is not None else {}),
            body=body,
        )
        response = await self._api_client.call_api(*request)
        found: Any = self._api_client.response_deserialize(response, {"2XX": model.__name__}).data
        return cast(ModelT, found)


_QUERY = {"label_selector": "labelSelector", "field_selector": "fieldSelector", "_continue": "continue"}


def _in(namespace: str, *path: str) -> tuple[str, ...]:
    return "namespaces", namespace, *path
