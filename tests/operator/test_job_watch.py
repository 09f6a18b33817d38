"""How the Jobs of a namespace are heard of through what an API server answers to a watch."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from hmi_api.errors import NotReady
from hmi_operator.kube.api import KubeApi, Manifest
from hmi_operator.kube.errors import ApiRefused
from hmi_operator.kube.job_watch import watch_jobs

pytestmark = pytest.mark.anyio

FORBIDDEN = ApiRefused(403, "Forbidden", "jobs is forbidden.")
TOO_OLD = ApiRefused(410, "Expired", "too old resource version")
AWAY = NotReady("ApiServerUnavailable", "It does not answer.")


class Api:
    """Answers watches one after another as told, the last for ever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.since: list[str] = []
        self.done = asyncio.Event()

    async def watch(
        self, kind: Any, namespace: Any, *, labels: str, since: str
    ) -> AsyncIterator[tuple[str, Manifest]]:
        self.since.append(since)
        if not self.answers:
            self.done.set()
            await asyncio.Event().wait()
        for one in self.answers.pop(0):
            if isinstance(one, Exception):
                raise one
            yield one


def at(version: str, type_: str = "MODIFIED") -> tuple[str, Manifest]:
    return type_, {"metadata": {"resourceVersion": version}}


async def watched(*answers: Any) -> tuple[list[str], list[str]]:
    """Return from which versions was watched, and the versions of what was heard."""
    api, heard = Api(*answers), list[str]()

    def hear(type_: str, manifest: Manifest) -> None:
        heard.append(manifest["metadata"]["resourceVersion"])

    task = asyncio.create_task(watch_jobs(cast(KubeApi, api), "team-a", hear))
    async with asyncio.timeout(10):
        await api.done.wait()
    task.cancel()
    await asyncio.wait({task})
    return api.since, heard


@pytest.fixture(autouse=True)
def prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RETRY_SECONDS", "_PAUSE_SECONDS"):
        monkeypatch.setattr(f"hmi_operator.kube.job_watch.{name}", 0.0)


@pytest.mark.parametrize(
    ("answers", "since", "heard"),
    [
        ([[at("3"), at("5")], [at("8")]], ["", "5", "8"], ["3", "5", "8"]),
        ([[at("3"), at("9", "BOOKMARK")]], ["", "9"], ["3"]),
        ([[at("3"), TOO_OLD], [at("7")]], ["", "", "7"], ["3", "7"]),
        ([[at("3"), AWAY], [at("4")]], ["", "3", "4"], ["3", "4"]),
        ([[at("3"), FORBIDDEN], [FORBIDDEN], [at("7")]], ["", "", "", "7"], ["3", "7"]),
    ],
)
async def test_a_watch_goes_on_where_it_was_or_begins_anew(
    answers: list[Any], since: list[str], heard: list[str]
) -> None:
    assert await watched(*answers) == (since, heard)


async def test_rights_that_are_missing_are_told_once_until_they_are_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    await watched([FORBIDDEN], [FORBIDDEN], [at("3")], [TOO_OLD], [FORBIDDEN])
    assert [record.getMessage() for record in caplog.records] == [
        "Jobs of team-a are not heard of now: Forbidden: jobs is forbidden."
    ] * 2
