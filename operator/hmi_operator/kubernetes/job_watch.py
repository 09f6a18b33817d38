"""Hearing of training Jobs, each namespace by itself: what becomes of one is no other's trouble."""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

from hmi_api.errors import HmiError
from hmi_operator.kubernetes.api import KubeApi, Manifest
from hmi_operator.kubernetes.errors import ApiRefused
from hmi_operator.kubernetes.jobs.naming import RUN_LABEL
from hmi_operator.kubernetes.kinds import JOBS

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_ADDED, _BOOKMARK = "ADDED", "BOOKMARK"


async def watch_jobs(api: KubeApi, namespace: str | None, hear: Callable[[str, Manifest], None]) -> None:
    """Hear of the training Jobs of a namespace, or of all, until cancelled; ``hear`` gets type and object.

    A namespace that is deleted takes the operator's rights in it along, and one that is made anew has none
    until they are given: that is no error, and Jobs are heard of again as soon as they may be.
    """
    since, refused = "", False
    while True:
        try:
            since = since or await _list_jobs(api, namespace, hear)
            async for type_, manifest in api.watch(JOBS, namespace, labels=RUN_LABEL, since=since):
                since, refused = manifest["metadata"]["resourceVersion"], False
                if type_ != _BOOKMARK:
                    hear(type_, manifest)
            refused = False
        except HmiError as error:
            if isinstance(error, ApiRefused):
                since = ""
            if not (refused or _is_too_old(error)):
                logger.warning("Jobs of %s are not heard of now: %s", namespace or "the cluster", error)
            refused = not _is_too_old(error)
        await asyncio.sleep(RETRY_SECONDS if refused else _PAUSE_SECONDS)


async def _list_jobs(api: KubeApi, namespace: str | None, hear: Callable[[str, Manifest], None]) -> str:
    """Hear of all Jobs that are there; return the resourceVersion that their list is of.

    A watch that has to begin with them is broken off by the API server where they are thousands.
    """
    versions: list[str] = []
    async for page in api.pages(JOBS, namespace, labels=RUN_LABEL, version=versions.append):
        for manifest in page:
            hear(_ADDED, manifest)
    return versions[-1]


def _is_too_old(error: HmiError) -> bool:
    """Say whether a watch only has to begin anew."""
    return isinstance(error, ApiRefused) and error.code == HTTPStatus.GONE
