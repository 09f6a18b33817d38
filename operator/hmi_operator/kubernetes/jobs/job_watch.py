"""A watch of the training Jobs of each namespace, and a cache of their status by run."""

import asyncio
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp
from kubernetes.aio.client import V1Job
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.watch import Watch

from hmi_api.errors import HmiError, NotReady
from hmi_operator.kubernetes.client import WATCH_SECONDS, ApiServerError, KubernetesClient, list_pages
from hmi_operator.kubernetes.jobs.job_status import JobStatus, is_owned, resource_of_labels
from hmi_operator.kubernetes.jobs.naming import RUN_LABEL
from hmi_operator.ports import ResourceRef

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
JOBS_PER_PAGE = 200
"""Fewer than in other lists: as models, Jobs take more than twice the memory of their JSON."""
_PAUSE_SECONDS = 0.2
_ADDED, _BOOKMARK, _DELETED = "ADDED", "BOOKMARK", "DELETED"


class JobCache:
    """Jobs by namespace and run; use it from one event loop.

    The namespace is part of the key, so that labels in one namespace cannot stand for a run of another.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: dict[tuple[str, str], tuple[JobStatus, float]] = {}

    def on_job(self, type_: str | None, job: V1Job) -> ResourceRef | None:
        """Store a Job from a watch; return the resource to enqueue.

        None when the Job is not of this operator or its status is known already. A Job that was only created
        enqueues nothing: its creator knows that it exists.
        """
        status = JobStatus.of(job)
        if status is None or not is_owned(job):
            return None
        known = self.job(status.namespace, status.run_id)
        if type_ == _DELETED:
            if known is None or known.uid == status.uid:
                self.forget(status.namespace, status.run_id)
            return resource_of_labels(job)
        self.put(status)
        return resource_of_labels(job) if status != known and not status.untouched else None

    def put(self, status: JobStatus) -> None:
        """Store the present status of a Job."""
        self._jobs[status.namespace, status.run_id] = (status, self._clock())

    def job(self, namespace: str, run_id: str) -> JobStatus | None:
        """Return a run's Job as last read, or None."""
        found = self._jobs.get((namespace, run_id))
        return found[0] if found else None

    def age(self, namespace: str, run_id: str) -> float:
        """Return the seconds since a run's Job was last read; infinite when it never was."""
        found = self._jobs.get((namespace, run_id))
        return self._clock() - found[1] if found else float("inf")

    def forget(self, namespace: str, run_id: str) -> None:
        """Forget a run's Job."""
        self._jobs.pop((namespace, run_id), None)


async def watch_jobs(
    client: KubernetesClient, namespace: str | None, handle: Callable[[str, V1Job], None]
) -> None:
    """Watch the training Jobs of a namespace, or of all, until cancelled; ``handle`` gets type and Job.

    Each namespace has its own watch. When a namespace is deleted, so are the operator's permissions in it,
    and a new one of that name has none until they are granted: that is no error, and the watch starts again
    as soon as it is permitted.
    """
    version, refused = "", False
    while True:
        try:
            version = version or await _list_jobs(client, namespace, handle)
            async for event in _events(client, namespace, version):
                refused = False
                version = event["raw_object"]["metadata"]["resourceVersion"]
                if event["type"] != _BOOKMARK:
                    handle(event["type"], event["object"])
            refused = False
        except HmiError as error:
            if isinstance(error, ApiServerError):
                version = ""
            if not (refused or _is_expired(error)):
                logger.warning("Jobs of %s are not watched now: %s", namespace or "the cluster", error)
            refused = not _is_expired(error)
        await asyncio.sleep(RETRY_SECONDS if refused else _PAUSE_SECONDS)


async def _events(client: KubernetesClient, namespace: str | None, version: str) -> Any:
    """Go through the events of one watch, until the API server ends it after some minutes."""
    options = {
        "label_selector": RUN_LABEL,
        "resource_version": version,
        "allow_watch_bookmarks": True,
        "timeout_seconds": WATCH_SECONDS,
    }
    request, arguments = _list_request(client, namespace)
    try:
        async with Watch() as watch:  # type: ignore[no-untyped-call]
            async for event in watch.stream(request, *arguments, **options):
                yield event
    except ApiException as error:
        raise ApiServerError(error.status, "Expired", str(error.reason)) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        message = f"A watch was interrupted ({type(error).__name__})."
        raise NotReady("ApiServerUnavailable", message) from error


async def _list_jobs(
    client: KubernetesClient, namespace: str | None, handle: Callable[[str, V1Job], None]
) -> str:
    """Handle all Jobs; return the resourceVersion of their list.

    The API server ends a watch that begins with thousands of objects.
    """
    version = ""
    request, arguments = _list_request(client, namespace)
    async for page in list_pages(request, *arguments, label_selector=RUN_LABEL, page_size=JOBS_PER_PAGE):
        version = page.metadata.resource_version
        for job in page.items:
            handle(_ADDED, job)
    return version


def _list_request(
    client: KubernetesClient, namespace: str | None
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    if namespace is None:
        return client.batch.list_job_for_all_namespaces, ()
    return client.batch.list_namespaced_job, (namespace,)


def _is_expired(error: HmiError) -> bool:
    """Whether a watch only has to start again from a new list."""
    return isinstance(error, ApiServerError) and error.code == HTTPStatus.GONE
