"""The pods of training Jobs and their times, as the control plane is told of them."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from hmi_api.internal.runs import RunPod
from hmi_operator.kubernetes.api import KubeApi
from hmi_operator.kubernetes.errors import ApiRefused
from hmi_operator.kubernetes.jobs.facts import JobFacts
from hmi_operator.kubernetes.kinds import PODS

logger = logging.getLogger(__name__)


class JobPods:
    """Reads the pods of Jobs, each time that a Job says something new of them."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._read: dict[str, tuple[JobFacts, tuple[RunPod, ...]]] = {}

    async def of(self, job: JobFacts) -> tuple[RunPod, ...]:
        """Return a Job's pods; none where it has none yet, or they cannot be read."""
        if job.untouched:
            return ()
        known = self._read.get(job.run_id)
        if known is not None and known[0] == job and (known[1] or job.finished):
            return known[1]
        labels = f"batch.kubernetes.io/controller-uid={job.uid}"
        try:
            pages = self._api.pages(PODS, job.namespace, labels=labels)
            pods = tuple([pod_of(body) async for page in pages for body in page if is_pod_of(body, job)])
        except ApiRefused as refused:
            logger.warning("run %s: its pods could not be read: %s", job.run_id, refused)
            return ()
        self._read[job.run_id] = (job, pods)
        return pods

    def forget(self, run_id: str) -> None:
        """Forget the pods of a run's Job."""
        self._read.pop(run_id, None)


def is_pod_of(body: Mapping[str, Any], job: JobFacts) -> bool:
    """Say whether a Job controls a pod; labels alone anyone can write."""
    owners: Sequence[Mapping[str, Any]] = body["metadata"].get("ownerReferences") or []
    return any(owner.get("controller") and owner.get("uid") == job.uid for owner in owners)


def pod_of(body: Mapping[str, Any]) -> RunPod:
    """Return a pod with the times of its program as the kubelet tells them."""
    statuses = (body.get("status") or {}).get("containerStatuses") or [{}]
    state = statuses[0].get("state") or {}
    ended: Mapping[str, Any] = state.get("terminated") or {}
    began = (state.get("running") or {}).get("startedAt") or ended.get("startedAt")
    return RunPod(
        uid=body["metadata"]["uid"],
        started_at=_moment(began),
        finished_at=_moment(ended.get("finishedAt")),
    )


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
