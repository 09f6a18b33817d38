"""Jobs are listed in pages and watched from there; an expired watch starts again from a new list."""

import asyncio
import json
from typing import Any

import pytest
from kubernetes.aio.client import V1Job, V1JobList

from hmi_operator.kubernetes.jobs.job_watch import watch_jobs

pytestmark = pytest.mark.anyio


def job(name: str, version: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}}


class Stream:
    """The answer to a watch; the last one never ends."""

    def __init__(self, *events: tuple[str, dict[str, Any]], endless: asyncio.Event | None = None) -> None:
        self._lines = [json.dumps({"type": type_, "object": body}).encode() + b"\n" for type_, body in events]
        self._endless = endless

    @property
    def content(self) -> "Stream":
        return self

    async def readline(self) -> bytes:
        if self._lines:
            return self._lines.pop(0)
        if self._endless is not None:
            self._endless.set()
            await asyncio.Event().wait()
        return b""

    def release(self) -> None:
        pass


class Watched:
    """An API server with two pages of Jobs, whose first watch ends and whose second has expired."""

    def __init__(self) -> None:
        self.lists = 0
        self.since: list[str] = []
        self.over = asyncio.Event()

    @property
    def batch(self) -> "Watched":
        return self

    async def list_namespaced_job(self, namespace: str, **query: Any) -> V1JobList:
        first = query["_continue"] is None
        self.lists += first
        page = {"items": [job("one" if first else "two", "7")]}
        metadata = {"resourceVersion": f"{self.lists}00"} | ({"continue": "more"} if first else {})
        found = V1JobList.from_dict(page | {"metadata": metadata})
        assert found is not None
        return found

    async def list_namespaced_job_without_preload_content(self, namespace: str, **query: Any) -> Stream:
        self.since.append(query["resource_version"])
        if len(self.since) == 1:
            return Stream(("MODIFIED", job("one", "101")), ("BOOKMARK", job("", "105")))
        if len(self.since) == 2:
            return Stream(("ERROR", {"code": 410, "reason": "Expired", "message": "too old"}))
        return Stream(("DELETED", job("two", "201")), endless=self.over)


async def test_jobs_are_listed_watched_from_there_and_listed_again_after_the_watch_expired() -> None:
    api, handled = Watched(), list[tuple[str, str]]()

    def handle(type_: str, body: V1Job) -> None:
        handled.append((type_, str(body.metadata and body.metadata.name)))

    client: Any = api
    watching = asyncio.create_task(watch_jobs(client, "shop", handle))
    await asyncio.wait_for(api.over.wait(), 10)
    watching.cancel()

    assert api.since == ["100", "105", "200"]
    both = [("ADDED", "one"), ("ADDED", "two")]
    assert handled == [*both, ("MODIFIED", "one"), *both, ("DELETED", "two")]
