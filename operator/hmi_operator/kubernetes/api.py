"""A small client of the API server: plain JSON objects, bounded tries, errors that say what to do."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any, Self

import aiohttp

from hmi_api.errors import NotReady
from hmi_operator.kubernetes.errors import ApiRefused, Conflict
from hmi_operator.kubernetes.kinds import Kind
from hmi_operator.kubernetes.login import Login

logger = logging.getLogger(__name__)

Manifest = dict[str, Any]
"""An object as JSON has it."""
RequestListener = Callable[[str, str, int], None]
"""Called after each request with its method, the plural of its kind and the answer's code (0: none)."""

ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.2
WATCH_SECONDS = 300
"""When the API server ends a watch, so that rights are asked for again."""
_MARGIN_SECONDS = 30
PAGE = 500
"""Objects in one answer to a list: a bound on the memory of one."""
_PASSING = {408, 429, 500, 502, 503, 504}
_ERROR = "ERROR"
_MERGE_PATCH = "application/merge-patch+json"


class KubeApi:
    """Reads and writes objects of an API server.

    Errors: ``NotReady`` when it cannot be reached or cannot answer now, after a few tries; ``Conflict`` when
    the object is not the one that was meant; ``ApiRefused`` for any other refusal.
    """

    def __init__(
        self,
        login: Login,
        *,
        timeout_seconds: float = 10.0,
        connections: int = 16,
        heard: RequestListener | None = None,
    ) -> None:
        self._login = login
        self._heard = heard
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = self._opened(self._connections)
        self._streams = self._opened(0)  # a watch keeps its connection, which must be taken from nobody
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in (self._session, self._streams):
            if session is not None:
                await session.close()
        self._session = self._streams = None

    def _opened(self, connections: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self._login.server,
            trust_env=False,
            connector=aiohttp.TCPConnector(ssl=self._login.tls(), limit=connections),
            timeout=self._timeout,
            headers={"Accept": "application/json", "User-Agent": "hmi-operator"},
        )

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Return an object, or None."""
        return await self._ask("GET", kind, kind.path(namespace, name), may_miss=True)

    async def pages(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        version: Callable[[str], None] = lambda found: None,
    ) -> AsyncIterator[list[Manifest]]:
        """Go through all objects that a label and a field selector take, a page at a time.

        ``version`` is told the resourceVersion from which a watch goes on.
        """
        chosen = {"labelSelector": labels, "fieldSelector": fields}
        wanted = {"limit": str(PAGE)} | {name: value for name, value in chosen.items() if value}
        token = ""
        while True:
            query = wanted | ({"continue": token} if token else {})
            answer = await self._ask("GET", kind, kind.path(namespace), query=query) or {}
            about = answer.get("metadata", {})
            version(about.get("resourceVersion") or "")
            yield answer.get("items") or []
            token = about.get("continue") or ""
            if not token:
                return

    async def watch(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", since: str
    ) -> AsyncIterator[tuple[str, Manifest]]:
        """Hear of changes, each with its type, until the API server ends the answer after some minutes.

        ``since`` is a resourceVersion; one that is too old to go on from is ``ApiRefused`` with 410.
        """
        if self._streams is None:
            raise RuntimeError("a KubeApi is used within `async with`")
        chosen = {"labelSelector": labels, "resourceVersion": since}
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        query |= {name: value for name, value in chosen.items() if value}
        timeout = aiohttp.ClientTimeout(
            total=WATCH_SECONDS + _MARGIN_SECONDS, sock_connect=self._timeout.total
        )
        headers = await self._login.headers()
        try:
            async with self._streams.get(
                kind.path(namespace), params=query, headers=headers, timeout=timeout
            ) as response:
                self._tell("WATCH", kind, response.status)
                if response.status != HTTPStatus.OK:
                    await self._refuse_watch(response.status, await response.read())
                async for line in _lines(response.content):
                    event = json.loads(line)
                    if event["type"] == _ERROR:
                        _read(event["object"]["code"], json.dumps(event["object"]).encode(), may_miss=False)
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotReady(
                "ApiServerUnavailable", f"A watch has broken off ({type(error).__name__})."
            ) from error

    async def _refuse_watch(self, code: int, body: bytes) -> None:
        if code == HTTPStatus.UNAUTHORIZED:
            await self._login.headers(refused=True)
        if code == HTTPStatus.UNAUTHORIZED or code in _PASSING:
            raise NotReady("ApiServerUnavailable", f"The API server answered {code} to a watch.")
        _read(code, body, may_miss=False)

    async def create(self, kind: Kind, namespace: str | None, body: Manifest) -> Manifest:
        """Create an object; ``Conflict`` when one of that name is there."""
        return await self._ask("POST", kind, kind.path(namespace), body=body) or {}

    async def replace(self, kind: Kind, namespace: str | None, body: Manifest) -> Manifest | None:
        """Replace an object, of the version that its metadata names; None when it is gone."""
        path = kind.path(namespace, body["metadata"]["name"])
        return await self._ask("PUT", kind, path, body=body, may_miss=True)

    async def merge_patch(
        self, kind: Kind, namespace: str | None, name: str, patch: Manifest, subresource: str | None = None
    ) -> Manifest | None:
        """Change what a JSON merge patch says; ``Conflict`` when it names another version. None when gone."""
        path = kind.path(namespace, name, subresource)
        return await self._ask("PATCH", kind, path, body=patch, content_type=_MERGE_PATCH, may_miss=True)

    async def delete(
        self, kind: Kind, namespace: str | None, name: str, *, uid: str | None = None, background: bool = True
    ) -> None:
        """Delete an object, of that uid where one is given; nothing happens when it is gone.

        What it owns goes in the background, or else (``background`` False) before it.
        """
        body: Manifest = {"propagationPolicy": "Background" if background else "Foreground"}
        if uid:
            body["preconditions"] = {"uid": uid}
        await self._ask("DELETE", kind, kind.path(namespace, name), body=body, may_miss=True)

    async def _ask(
        self,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = "application/json",
        may_miss: bool = False,
    ) -> Manifest | None:
        """Send a request, again while the failure may pass.

        A create that was done though its answer was lost is then a ``Conflict``, as for whoever comes second.
        """
        content = None if body is None else json.dumps(body).encode()
        trouble, refused = "", False
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            headers = await self._login.headers(refused=refused)
            if content is not None:
                headers = headers | {"Content-Type": content_type}
            try:
                code, answer = await self._send(method, path, query, content, headers)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._tell(method, kind, 0)
                trouble = f"it could not be reached ({type(error).__name__})"
                continue
            self._tell(method, kind, code)
            refused = code == HTTPStatus.UNAUTHORIZED
            if not refused and code not in _PASSING:
                return _read(code, answer, may_miss=may_miss)
            trouble = f"it answered {code} to {method} {path}"
        raise NotReady("ApiServerUnavailable", f"The API server does not work now: {trouble}; try again.")

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        content: bytes | None,
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        """Return code and body of the answer."""
        if self._session is None:
            raise RuntimeError("a KubeApi is used within `async with`")
        async with self._session.request(
            method, path, params=query, data=content, headers=headers
        ) as response:
            return response.status, await response.read()

    def _tell(self, method: str, kind: Kind, code: int) -> None:
        if self._heard is not None:
            self._heard(method, kind.plural, code)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Go through the lines of an answer, however long they are."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


def _read(code: int, body: bytes, *, may_miss: bool) -> Manifest | None:
    if code < HTTPStatus.BAD_REQUEST:
        answer: Manifest = json.loads(body)
        return answer
    if code == HTTPStatus.NOT_FOUND and may_miss:
        return None
    reason, message = _explain(code, body)
    if code == HTTPStatus.CONFLICT:
        raise Conflict(code, reason, message)
    raise ApiRefused(code, reason, message)


def _explain(code: int, body: bytes) -> tuple[str, str]:
    """Return reason and message of a Kubernetes ``Status``; plain words for any other body."""
    try:
        status = json.loads(body)
        return str(status["reason"]), str(status["message"])
    except (ValueError, KeyError, TypeError):
        return "Refused", f"The API server answered {code}."
