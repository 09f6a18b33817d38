"""Training runs as Kubernetes Jobs: the reconciler's port ``TrainingJobs`` on an API server."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeVar

from kubernetes.aio.client import CoreV1Event, V1DeleteOptions, V1Preconditions

from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.runs import RunPod, RunState, RunView
from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.client import (
    MERGE_PATCH,
    ApiServerConflict,
    ApiServerError,
    KubernetesClient,
    find,
    list_items,
    metadata_of,
)
from hmi_operator.kubernetes.jobs.job_status import (
    JobStatus,
    PodStatus,
    job_view,
    lacks_volume,
    refusal_of,
    wants_pods,
    wants_warnings,
)
from hmi_operator.kubernetes.jobs.job_watch import JobCache
from hmi_operator.kubernetes.jobs.manifest import build_checkpoint_claim, build_training_job
from hmi_operator.kubernetes.jobs.naming import RUN_LABEL, UID_LABEL, job_name
from hmi_operator.kubernetes.jobs.network import TrainingNetwork
from hmi_operator.kubernetes.jobs.settings import TrainerSettings
from hmi_operator.planning import JobView, PodProblem

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""A Job younger than this is not inspected for why it does not run yet."""
DETAILS_SECONDS = 15.0
"""How long a Job's pods and Warning Events are cached."""
BELIEVED_SECONDS = 600.0
"""How long a Job without watch events is assumed to exist: a watch can miss a deletion."""
ENDING_SECONDS = 5.0
"""The same for one that is being deleted."""
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_POLL_SECONDS = 0.5
_MARGIN_SECONDS = 15.0
_EXISTS = "AlreadyExists"
_WRONG = (400, 422)
_NO_ACCESS = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Details:
    """A Job's pods and Warning Events, and when they were read."""

    job: JobStatus
    """The Job at that time; when it changed since, the details are read again."""
    read_at: float
    pods: Sequence[PodStatus]
    warnings: Sequence[str]


@dataclass(frozen=True)
class _Refusal:
    """A Job that the API server did not admit."""

    uid: str
    at: datetime
    problem: PodProblem


class KubernetesTrainingJobs:
    """Starts, observes and ends the Jobs of training runs.

    The name of a Job follows from its run, so that it is created once, however often and by whichever
    replica it is started. The state is the API server's; ``cache`` only saves requests. In a namespace that
    is being deleted, the operator loses its permissions first, and Kubernetes deletes the Jobs.
    """

    def __init__(
        self,
        client: KubernetesClient,
        cache: JobCache,
        settings: TrainerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._cache = cache
        self._settings = settings
        self._network = TrainingNetwork(client, settings, clock=clock)
        self._clock = clock
        self._details: dict[str, _Details] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._released: set[str] = set()
        self._run_pods: dict[str, tuple[JobStatus, tuple[RunPod, ...]]] = {}

    async def start(self, run: RunView) -> None:
        """Create the run's Job and work volume, and the namespace's NetworkPolicy before them.

        Nothing happens when it has a Job that is not finished.

        One that finished though its run did not is replaced. What the API server does not admit (a quota, a
        policy, a wrong quantity) is reported by ``observe``. ``NotReady`` while the replaced one is ending.
        """
        crashes = 0
        if self._cache.job(run.spec.namespace, run.id) is not None:
            job = await self._read(run)
            if job is not None:
                if not job.finished:
                    return
                crashes = job.crashes
                await self._delete(job)
        try:
            await self._create(run, crashes)
        except ApiServerConflict:
            raise  # with something that passes, such as two changes of one quota
        except ApiServerError as refused:
            self._refuse(run, refusal_of(refused.message), final=refused.code in _WRONG)
        except InvalidInput as wrong:
            self._refuse(run, PodProblem(Reason.JOB_REFUSED, wrong.message), final=True)
        else:
            self._refusals.pop(run.id, None)

    async def observe(self, run: RunView) -> JobView | None:
        """Return the state of the run's Job; None when it has none.

        Also sets how long the Job and the volume of an ended run are kept.
        """
        return await self._unless_terminating(run.spec.namespace, self._with_pods(run))

    async def _with_pods(self, run: RunView) -> JobView | None:
        view = await self._observe(run)
        job = self._cache.job(run.spec.namespace, run.id)
        return (
            replace(view, pods=await self._pods_of_run(job)) if view is not None and job is not None else view
        )

    async def _observe(self, run: RunView) -> JobView | None:
        job = self._cache.job(run.spec.namespace, run.id)
        if job is not None and self._is_stale(run):
            job = await self._read(run)
        if run.state in (RunState.SUCCEEDED, RunState.FAILED):
            if run.id not in self._released:
                await self._release_volume(run, job)
                self._released.add(run.id)
            return job_view(job, ()) if job is not None else None
        if job is None:
            refusal = self._refusals.get(run.id)
            return JobView(False, ended_at=refusal.at, problem=refusal.problem) if refusal else None
        details = await self._read_details(job)
        if any(lacks_volume(pod, job.name) for pod in details.pods):
            await self._ensure_claim(run)
        return job_view(job, details.pods, details.warnings)

    async def stop(self, run_id: str, namespace: str) -> None:
        """Delete the run's Job and work volume; returns when its pods are gone, or cannot be waited for.

        A finished Job is kept until its time to live is over, for its log.
        """
        self._refusals.pop(run_id, None)
        await self._unless_terminating(
            namespace, self._sweep(namespace, f"{RUN_LABEL}={run_id}", finished=False)
        )

    async def delete_all(self, uid: str, namespace: str) -> None:
        """Delete all Jobs and work volumes of a resource; idempotent."""
        self._refusals = {run: refusal for run, refusal in self._refusals.items() if refusal.uid != uid}
        await self._unless_terminating(namespace, self._sweep(namespace, f"{UID_LABEL}={uid}", finished=True))

    # --- starting ---------------------------------------------------------------------------------

    async def _read(self, run: RunView) -> JobStatus | None:
        """Return the run's Job as the API server has it."""
        job = await find(self._client.batch.read_namespaced_job(job_name(run), run.spec.namespace))
        status = JobStatus.of(job) if job is not None else None
        if status is None:
            self._forget(run.spec.namespace, run.id)
        else:
            self._cache.put(status)
        return status

    async def _create(self, run: RunView, crashes: int) -> None:
        job = build_training_job(run, self._settings, crashes=crashes)
        await self._network.ensure(run.spec.namespace)
        await self._ensure_claim(run)
        try:
            created = await self._client.batch.create_namespaced_job(run.spec.namespace, job)
        except ApiServerConflict as conflict:
            if conflict.reason != _EXISTS:
                raise
            await self._read(run)  # another replica was faster, or the answer to an earlier attempt was lost
            return
        status = JobStatus.of(created)
        if status is not None:
            self._cache.put(status)

    async def _ensure_claim(self, run: RunView) -> None:
        claim = build_checkpoint_claim(run, self._settings)
        if claim is None:
            return
        try:
            await self._client.core.create_namespaced_persistent_volume_claim(run.spec.namespace, claim)
        except ApiServerConflict as conflict:
            if conflict.reason != _EXISTS:
                raise
            logger.debug("run %s keeps the work volume that it has", run.id)

    def _refuse(self, run: RunView, problem: PodProblem, *, final: bool) -> None:
        logger.warning("run %s: %s", run.id, problem.message)
        final_problem = PodProblem(problem.reason, problem.message, final=final)
        self._refusals[run.id] = _Refusal(run.uid, datetime.now(UTC), final_problem)

    # --- observing --------------------------------------------------------------------------------

    def _is_stale(self, run: RunView) -> bool:
        job = self._cache.job(run.spec.namespace, run.id)
        believed = ENDING_SECONDS if job is not None and job.terminating else BELIEVED_SECONDS
        return self._cache.age(run.spec.namespace, run.id) > believed

    async def _read_details(self, job: JobStatus) -> _Details:
        """Return a Job's pods and Warning Events where they say more than the Job itself; cached."""
        now = self._clock()
        young = (
            job.created_at is None or (datetime.now(UTC) - job.created_at).total_seconds() < PATIENCE_SECONDS
        )
        if not wants_pods(job) or (young and not job.crashes):
            self._details.pop(job.run_id, None)
            return _Details(job, now, (), ())
        known = self._details.get(job.run_id)
        if known is not None and known.job == job and now - known.read_at < DETAILS_SECONDS:
            return known
        try:
            pods = await self._pods(job)
            about = wants_warnings(job, pods)
            warnings = await self._warnings(job.namespace, about) if about else []
        except ApiServerError as refused:
            # Details for the status must not stop the work.
            logger.warning("run %s: why it does not run could not be read: %s", job.run_id, refused)
            pods, warnings = [], []
        self._details[job.run_id] = _Details(job, now, pods, warnings)
        return self._details[job.run_id]

    async def _pods(self, job: JobStatus) -> list[PodStatus]:
        labels = f"batch.kubernetes.io/controller-uid={job.uid}"
        pods = list_items(self._client.core.list_namespaced_pod, job.namespace, label_selector=labels)
        return [PodStatus.of(pod) async for pod in pods]

    async def _pods_of_run(self, job: JobStatus) -> tuple[RunPod, ...]:
        """Return a Job's pods and their times, read when the Job changed; none where they cannot be read."""
        if job.untouched:
            return ()
        known = self._run_pods.get(job.run_id)
        if known is not None and known[0] == job and (known[1] or job.finished):
            return known[1]
        try:
            pods = await self._pods(job)
        except ApiServerError as refused:
            logger.warning("run %s: its pods could not be read: %s", job.run_id, refused)
            return ()
        # Labels anyone can write; the Job controls its own pods.
        found = tuple(pod.run_pod for pod in pods if pod.controller_uid == job.uid)
        self._run_pods[job.run_id] = (job, found)
        return found

    async def _warnings(self, namespace: str, uid: str) -> list[str]:
        """Return the messages of an object's Warning Events, newest first.

        Read as ``v1``: the client's model of ``events.k8s.io/v1`` refuses Events without ``eventTime``, which
        Kubernetes' own components still write.
        """
        fields = f"type=Warning,involvedObject.uid={uid}"
        listed = list_items(self._client.core.list_namespaced_event, namespace, field_selector=fields)
        events = sorted([event async for event in listed], key=_last_seen, reverse=True)
        return [event.message for event in events if event.message]

    # --- ending -----------------------------------------------------------------------------------

    async def _unless_terminating(self, namespace: str, work: Awaitable[ResultT]) -> ResultT | None:
        """Return the result of work in a namespace; None where the namespace is gone or being deleted."""
        try:
            return await work
        except ApiServerError as refused:
            if refused.code not in _NO_ACCESS:
                raise
            found = await find(self._client.core.read_namespace(namespace))
            if found is not None and metadata_of(found).deletion_timestamp is None:
                raise
            logger.info("namespace %s is being deleted, and its Jobs with it: %s", namespace, refused)
            return None

    async def _sweep(self, namespace: str, labels: str, *, finished: bool) -> None:
        listed = list_items(self._client.batch.list_namespaced_job, namespace, label_selector=labels)
        found = [status async for job in listed if (status := JobStatus.of(job)) is not None]
        jobs = [job for job in found if finished or not job.finished]
        kept = [job for job in found if job not in jobs]
        for job in kept:
            await self._keep_log(job)
            await self._hand_over_volume(job)
        for job in jobs:
            await self._delete_job(job)
        gone = await asyncio.gather(*(self._gone(job) for job in jobs))
        for job in (job for job, is_gone in zip(jobs, gone, strict=True) if not is_gone):
            # Its node may be dead. The control plane refuses its reports: the run has ended.
            logger.warning("Job %s/%s is still ending; it is not waited for", job.namespace, job.name)
        await self._sweep_claims(namespace, labels, kept={job.name for job in kept})

    async def _sweep_claims(self, namespace: str, labels: str, *, kept: Container[str]) -> None:
        listed = self._client.core.list_namespaced_persistent_volume_claim
        claims = [claim async for claim in list_items(listed, namespace, label_selector=labels)]
        for metadata in (claim.metadata for claim in claims):
            if metadata.name not in kept:
                await self._delete_claim(namespace, metadata.name, metadata.uid)

    async def _delete(self, job: JobStatus) -> None:
        """Delete a Job with its pods; raises ``NotReady`` when they are not gone within the bound."""
        await self._delete_job(job)
        if not await self._gone(job):
            raise NotReady("JobEnding", f"Job {job.name} is still ending; its run starts again after it.")

    async def _delete_job(self, job: JobStatus) -> None:
        """Delete a Job after its pods; nothing happens when it is gone."""
        options = V1DeleteOptions(propagation_policy="Foreground", preconditions=V1Preconditions(uid=job.uid))
        await find(self._client.batch.delete_namespaced_job(job.name, job.namespace, body=options))

    async def _delete_claim(self, namespace: str, name: str, uid: str | None = None) -> None:
        preconditions = V1Preconditions(uid=uid) if uid else None
        options = V1DeleteOptions(propagation_policy="Background", preconditions=preconditions)
        delete = self._client.core.delete_namespaced_persistent_volume_claim
        await find(delete(name, namespace, body=options))

    async def _gone(self, job: JobStatus) -> bool:
        """Wait for a deleted Job, no longer than its pods' grace and a margin; return whether it is gone."""
        give_up = self._clock() + self._settings.trainer_termination_grace_seconds + _MARGIN_SECONDS
        while True:
            present = await find(self._client.batch.read_namespaced_job(job.name, job.namespace))
            if present is None or metadata_of(present).uid != job.uid:
                self._forget(job.namespace, job.run_id)
                return True
            if self._clock() > give_up:
                return False
            await asyncio.sleep(_POLL_SECONDS)

    async def _release_volume(self, run: RunView, job: JobStatus | None) -> None:
        """Let the volume of an ended run be deleted with its Job, which is kept for a while for its log."""
        if job is None or job.terminating:
            if self._settings.trainer_checkpoint_size:
                await self._delete_claim(run.spec.namespace, job_name(run))
            return
        if run.state is RunState.FAILED:
            await self._keep_log(job)
        await self._hand_over_volume(job)

    async def _hand_over_volume(self, job: JobStatus) -> None:
        """Make the Job the owner of its work volume, so that both are deleted together.

        Deleted before, the volume would be Terminating for as long as a pod of the Job exists.
        """
        if self._settings.trainer_checkpoint_size:
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid}
            patch = {"metadata": {"ownerReferences": [owner]}}
            await find(
                self._client.core.patch_namespaced_persistent_volume_claim(job.name, job.namespace, patch)
            )

    async def _keep_log(self, job: JobStatus) -> None:
        """Keep the Job of a run that failed for longer than one that succeeded: its log says why."""
        if self._settings.trainer_ttl_seconds > self._settings.trainer_succeeded_ttl_seconds:
            patch = {"spec": {"ttlSecondsAfterFinished": self._settings.trainer_ttl_seconds}}
            await find(
                self._client.batch.patch_namespaced_job(
                    job.name, job.namespace, patch, _content_type=MERGE_PATCH
                )
            )

    def _forget(self, namespace: str, run_id: str) -> None:
        self._cache.forget(namespace, run_id)
        self._details.pop(run_id, None)
        self._run_pods.pop(run_id, None)


def _last_seen(event: CoreV1Event) -> datetime:
    repeated = event.series.last_observed_time if event.series else None
    return repeated or event.event_time or event.last_timestamp or _EARLIEST
