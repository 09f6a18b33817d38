"""Training runs as Kubernetes Jobs: the engine's ``TrainingJobs`` on an API server."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TypeVar

from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.runs import RunState, RunView
from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.api import KubeApi
from hmi_operator.kubernetes.errors import ApiRefused, Conflict
from hmi_operator.kubernetes.jobs.cache import TrainingCache
from hmi_operator.kubernetes.jobs.claim import build_checkpoint_claim
from hmi_operator.kubernetes.jobs.facts import JobFacts, PodFacts
from hmi_operator.kubernetes.jobs.manifest import build_training_job
from hmi_operator.kubernetes.jobs.naming import RUN_LABEL, UID_LABEL, job_name
from hmi_operator.kubernetes.jobs.network import TrainingNetwork
from hmi_operator.kubernetes.jobs.pods import JobPods
from hmi_operator.kubernetes.jobs.settings import TrainerSettings
from hmi_operator.kubernetes.jobs.view import job_view, lacks_volume, refusal_of, wants_pods, wants_warnings
from hmi_operator.kubernetes.kinds import CLAIMS, EVENTS, JOBS, NAMESPACES, PODS
from hmi_operator.planning import JobView, PodProblem

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""A Job younger than this is not asked why it does not run yet."""
DETAILS_SECONDS = 15.0
"""How long what was read of a Job's pods and warnings is believed."""
BELIEVED_SECONDS = 600.0
"""How long a Job that nothing was heard of is believed to be there: a watch can miss a deletion."""
ENDING_SECONDS = 5.0
"""The same for one that is being deleted."""
_POLL_SECONDS = 0.5
_MARGIN_SECONDS = 15.0
_EXISTS = "AlreadyExists"
_WRONG = (400, 422)
_NO_WAY_IN = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Details:
    """What was read of a Job's pods and warnings, and when."""

    job: JobFacts
    """As it was then: what has changed since is read again."""
    read_at: float
    pods: Sequence[PodFacts]
    warnings: Sequence[str]


@dataclass(frozen=True)
class _Refusal:
    """A Job that the API server did not admit."""

    uid: str
    at: datetime
    trouble: PodProblem


class KubeJobs:
    """Starts, observes and ends the Jobs of training runs.

    A run's Job has the run's own name, so that it is created once however often and by whomever it is
    started. All state that matters is the API server's; ``cache`` only saves asking for it. In a namespace
    that is being deleted there is nothing any more: the operator's rights there are the first to go, and
    its Jobs go by themselves.
    """

    def __init__(
        self,
        api: KubeApi,
        cache: TrainingCache,
        settings: TrainerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._cache = cache
        self._settings = settings
        self._network = TrainingNetwork(api, settings, clock=clock)
        self._clock = clock
        self._details: dict[str, _Details] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._given_back: set[str] = set()
        self._job_pods = JobPods(api)

    async def start(self, run: RunView) -> None:
        """Create the run's Job and work volume, and the namespace's NetworkPolicy before them.

        Nothing happens when it has a Job that is not finished.

        One that finished though its run did not is replaced. What the API server does not admit (a quota, a
        policy, a wrong quantity) is told by ``observe``. ``NotReady`` while the replaced one is ending.
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
        except Conflict:
            raise  # with something that passes, such as two changes of one quota
        except ApiRefused as refused:
            self._refuse(run, refusal_of(refused.message), final=refused.code in _WRONG)
        except InvalidInput as wrong:
            self._refuse(run, PodProblem(Reason.JOB_REFUSED, wrong.message), final=True)
        else:
            self._refusals.pop(run.id, None)

    async def observe(self, run: RunView) -> JobView | None:
        """Return what is known of the run's process; None when it has no Job.

        What a run that has ended leaves behind is given its time here.
        """
        return await self._unless_going(run.spec.namespace, self._with_pods(run))

    async def _with_pods(self, run: RunView) -> JobView | None:
        view = await self._observe(run)
        job = self._cache.job(run.spec.namespace, run.id)
        return (
            replace(view, pods=await self._job_pods.of(job)) if view is not None and job is not None else view
        )

    async def _observe(self, run: RunView) -> JobView | None:
        job = self._cache.job(run.spec.namespace, run.id)
        if job is not None and self._is_stale(run):
            job = await self._read(run)
        if run.state in (RunState.SUCCEEDED, RunState.FAILED):
            if run.id not in self._given_back:
                await self._give_back(run, job)
                self._given_back.add(run.id)
            return job_view(job, ()) if job is not None else None
        if job is None:
            refusal = self._refusals.get(run.id)
            return JobView(False, ended_at=refusal.at, problem=refusal.trouble) if refusal else None
        details = await self._look_into(job)
        if any(lacks_volume(pod, job.name) for pod in details.pods):
            await self._ensure_claim(run)
        return job_view(job, details.pods, details.warnings)

    async def stop(self, run_id: str, namespace: str) -> None:
        """Delete the run's Job and work volume; returns when its pods are gone, or cannot be waited for.

        A Job that has finished is left until its time is over: its log says why it came to this.
        """
        self._refusals.pop(run_id, None)
        await self._unless_going(namespace, self._sweep(namespace, f"{RUN_LABEL}={run_id}", finished=False))

    async def erase(self, uid: str, namespace: str) -> None:
        """Delete all Jobs and work volumes of a resource; idempotent."""
        self._refusals = {run: refusal for run, refusal in self._refusals.items() if refusal.uid != uid}
        await self._unless_going(namespace, self._sweep(namespace, f"{UID_LABEL}={uid}", finished=True))

    # --- starting ---------------------------------------------------------------------------------

    async def _read(self, run: RunView) -> JobFacts | None:
        """Return the run's Job as the API server has it."""
        body = await self._api.get(JOBS, run.spec.namespace, job_name(run))
        facts = JobFacts.of(body) if body is not None else None
        if facts is None:
            self._forget(run.spec.namespace, run.id)
        else:
            self._cache.put(facts)
        return facts

    async def _create(self, run: RunView, crashes: int) -> None:
        job = build_training_job(run, self._settings, crashes=crashes)
        await self._network.ensure(run.spec.namespace)
        await self._ensure_claim(run)
        try:
            made = await self._api.create(JOBS, run.spec.namespace, job)
        except Conflict as conflict:
            if conflict.reason != _EXISTS:
                raise
            await self._read(run)  # somebody was quicker, or the answer to an earlier try was lost
            return
        facts = JobFacts.of(made)
        if facts is not None:
            self._cache.put(facts)

    async def _ensure_claim(self, run: RunView) -> None:
        claim = build_checkpoint_claim(run, self._settings)
        if claim is None:
            return
        try:
            await self._api.create(CLAIMS, run.spec.namespace, claim)
        except Conflict as conflict:
            if conflict.reason != _EXISTS:
                raise
            logger.debug("run %s goes on with the work volume that it has", run.id)

    def _refuse(self, run: RunView, trouble: PodProblem, *, final: bool) -> None:
        logger.warning("run %s: %s", run.id, trouble.message)
        told = PodProblem(trouble.reason, trouble.message, final=final)
        self._refusals[run.id] = _Refusal(run.uid, datetime.now(UTC), told)

    # --- observing --------------------------------------------------------------------------------

    def _is_stale(self, run: RunView) -> bool:
        job = self._cache.job(run.spec.namespace, run.id)
        believed = ENDING_SECONDS if job is not None and job.terminating else BELIEVED_SECONDS
        return self._cache.age(run.spec.namespace, run.id) > believed

    async def _look_into(self, job: JobFacts) -> _Details:
        """Return a Job's pods and warnings where they say more than the Job; read at most now and then."""
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
        except ApiRefused as refused:
            # What is only told to people must not stop the work.
            logger.warning("run %s: why it does not run could not be read: %s", job.run_id, refused)
            pods, warnings = [], []
        self._details[job.run_id] = _Details(job, now, pods, warnings)
        return self._details[job.run_id]

    async def _pods(self, job: JobFacts) -> list[PodFacts]:
        labels = f"batch.kubernetes.io/controller-uid={job.uid}"
        pages = self._api.pages(PODS, job.namespace, labels=labels)
        return [PodFacts.of(body) async for page in pages for body in page]

    async def _warnings(self, namespace: str, uid: str) -> list[str]:
        """Return the messages of an object's warning events, newest first."""
        fields = f"type=Warning,regarding.uid={uid}"
        pages = self._api.pages(EVENTS, namespace, fields=fields)
        events = [body async for page in pages for body in page]
        events.sort(key=_last_seen, reverse=True)
        return [str(body["note"]) for body in events if body.get("note")]

    # --- ending -----------------------------------------------------------------------------------

    async def _unless_going(self, namespace: str, work: Awaitable[ResultT]) -> ResultT | None:
        """Return what comes of work in a namespace, None where that is gone or going and lets nobody in."""
        try:
            return await work
        except ApiRefused as refused:
            if refused.code not in _NO_WAY_IN:
                raise
            found = await self._api.get(NAMESPACES, None, namespace)
            if found is not None and "deletionTimestamp" not in found["metadata"]:
                raise
            logger.info("namespace %s is being deleted, and its Jobs with it: %s", namespace, refused)
            return None

    async def _sweep(self, namespace: str, labels: str, *, finished: bool) -> None:
        found = [
            facts
            async for page in self._api.pages(JOBS, namespace, labels=labels)
            for body in page
            if (facts := JobFacts.of(body)) is not None
        ]
        jobs = [job for job in found if finished or not job.finished]
        kept = [job for job in found if job not in jobs]
        for job in kept:
            await self._keep_log(job)
            await self._hand_over_volume(job)
        for job in jobs:
            await self._api.delete(JOBS, job.namespace, job.name, uid=job.uid, background=False)
        gone = await asyncio.gather(*(self._gone(job) for job in jobs))
        for job in (job for job, is_gone in zip(jobs, gone, strict=True) if not is_gone):
            # Its node may be dead. What it still hands in is refused: its run has ended.
            logger.warning("Job %s/%s is still ending; it is not waited for", job.namespace, job.name)
        await self._sweep_claims(namespace, labels, kept={job.name for job in kept})

    async def _sweep_claims(self, namespace: str, labels: str, *, kept: Container[str]) -> None:
        claims = [body async for page in self._api.pages(CLAIMS, namespace, labels=labels) for body in page]
        for metadata in (body["metadata"] for body in claims):
            if metadata["name"] not in kept:
                await self._api.delete(CLAIMS, metadata["namespace"], metadata["name"], uid=metadata["uid"])

    async def _delete(self, job: JobFacts) -> None:
        """Delete a Job with its pods; raises ``NotReady`` when they are not gone within the bound."""
        await self._api.delete(JOBS, job.namespace, job.name, uid=job.uid, background=False)
        if not await self._gone(job):
            raise NotReady("JobEnding", f"Job {job.name} is still ending; its run starts again after it.")

    async def _gone(self, job: JobFacts) -> bool:
        """Wait for a deleted Job, no longer than its pods' grace and a margin; return whether it is gone."""
        give_up = self._clock() + self._settings.termination_grace_seconds + _MARGIN_SECONDS
        while True:
            body = await self._api.get(JOBS, job.namespace, job.name)
            if body is None or body["metadata"].get("uid") != job.uid:
                self._forget(job.namespace, job.run_id)
                return True
            if self._clock() > give_up:
                return False
            await asyncio.sleep(_POLL_SECONDS)

    async def _give_back(self, run: RunView, job: JobFacts | None) -> None:
        """Let the volume of a run that has ended go with its Job, which is kept for a while for its log."""
        if job is None or job.terminating:
            if self._settings.checkpoint_size:
                await self._api.delete(CLAIMS, run.spec.namespace, job_name(run))
            return
        if run.state is RunState.FAILED:
            await self._keep_log(job)
        await self._hand_over_volume(job)

    async def _hand_over_volume(self, job: JobFacts) -> None:
        """Make a work volume its Job's, so that both go at once.

        Deleted before, it would be Terminating for as long as there is a pod of the Job.
        """
        if self._settings.checkpoint_size:
            owner = {"apiVersion": JOBS.api_version, "kind": JOBS.kind, "name": job.name, "uid": job.uid}
            patch = {"metadata": {"ownerReferences": [owner]}}
            await self._api.merge_patch(CLAIMS, job.namespace, job.name, patch)

    async def _keep_log(self, job: JobFacts) -> None:
        """Keep the Job of a run that failed for longer than one that succeeded: its log says why."""
        if self._settings.ttl_seconds > self._settings.succeeded_ttl_seconds:
            patch = {"spec": {"ttlSecondsAfterFinished": self._settings.ttl_seconds}}
            await self._api.merge_patch(JOBS, job.namespace, job.name, patch)

    def _forget(self, namespace: str, run_id: str) -> None:
        self._cache.forget(namespace, run_id)
        self._details.pop(run_id, None)
        self._job_pods.forget(run_id)


def _last_seen(event: dict[str, object]) -> str:
    series = event.get("series")
    repeated = series.get("lastObservedTime") if isinstance(series, dict) else None
    return str(repeated or event.get("eventTime") or event.get("deprecatedLastTimestamp") or "")
