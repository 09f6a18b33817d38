"""Jobs are listed in pages and watched from there; what is too old is listed anew."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from hmi_operator.kubernetes.api import Manifest
from hmi_operator.kubernetes.errors import ApiRefused
from hmi_operator.kubernetes.job_watch import watch_jobs

pytestmark = pytest.mark.anyio


def job(name: str, version: str) -> Manifest:
    return {"metadata": {"name": name, "resourceVersion": version}}


class Watched:
    """An API server with two pages of Jobs, whose first watch breaks off and whose second is too old."""

    def __init__(self) -> None:
        self.lists = 0
        self.since: list[str] = []
        self.over = asyncio.Event()

    async def pages(
        self, *_: Any, labels: str, version: Callable[[str], None]
    ) -> AsyncIterator[list[Manifest]]:
        self.lists += 1
        for name in ("one", "two"):
            version(f"{self.lists}00")
            yield [job(name, "7")]

    async def watch(self, *_: Any, labels: str, since: str) -> AsyncIterator[tuple[str, Manifest]]:
        self.since.append(since)
        if len(self.since) == 1:
            yield "MODIFIED", job("one", "101")
            yield "BOOKMARK", job("", "105")
        elif len(self.since) == 2:
            raise ApiRefused(410, "Expired", "too old")
        else:
            yield "DELETED", job("two", "201")
            self.over.set()
            await asyncio.Event().wait()


async def test_jobs_are_listed_watched_from_there_and_listed_anew_when_that_is_too_old() -> None:
    api, heard = Watched(), list[tuple[str, str]]()
    watching = asyncio.create_task(
        watch_jobs(api, "shop", lambda type_, body: heard.append((type_, body["metadata"]["name"])))  # type: ignore[arg-type]
    )
    await asyncio.wait_for(api.over.wait(), 10)
    watching.cancel()

    assert api.since == ["100", "105", "200"]
    both = [("ADDED", "one"), ("ADDED", "two")]
    assert heard == [*both, ("MODIFIED", "one"), *both, ("DELETED", "two")]
