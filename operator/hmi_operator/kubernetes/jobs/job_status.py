"""The status of training Jobs and their pods: the few fields that are read, and what they mean for a run."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kubernetes.aio.client import V1ContainerState, V1Job, V1JobStatus, V1Pod

from hmi_api.internal.runs import RunPod
from hmi_api.names import API_VERSION, PLURALS
from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.client import metadata_of
from hmi_operator.kubernetes.jobs.naming import CRASHES_ANNOTATION, KIND_LABEL, NAME_LABEL, RUN_LABEL
from hmi_operator.planning import JobView, PodProblem
from hmi_operator.planning.training import MAX_CRASHES
from hmi_operator.ports import ResourceRef

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_IMAGE_REASONS = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_TOO_LONG = "DeadlineExceeded"
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class JobStatus:
    """A training Job: a few fields, so that thousands fit in little memory."""

    run_id: str
    namespace: str
    name: str
    uid: str
    created_at: datetime | None
    terminating: bool
    active: int
    """Pods that exist and have not finished."""
    ready: int
    """Those of them in which the trainer runs."""
    crashes: int
    """Pods of this Job, and of earlier Jobs of the same run, that died. A pod that succeeded counts too: this
    is only read for a run that has no result."""
    finished_at: datetime | None
    succeeded: bool
    failure: str
    """Why the Job failed for good, such as ``BackoffLimitExceeded``; else empty."""
    deadline_seconds: int
    memory_limit: str

    @classmethod
    def of(cls, job: V1Job) -> "JobStatus | None":
        """Read a Job; None when it is not of a training run."""
        metadata, spec, status = metadata_of(job), job.spec, job.status or V1JobStatus()
        run_id = (metadata.labels or {}).get(RUN_LABEL)
        if not run_id:
            return None
        ends = {
            condition.type: condition
            for condition in status.conditions or []
            if condition.status == "True" and condition.type in ("Complete", "Failed")
        }
        end, failed = ends.get("Failed") or ends.get("Complete"), ends.get("Failed")
        carried = (metadata.annotations or {}).get(CRASHES_ANNOTATION, "0")
        pod = spec.template.spec if spec else None
        resources = pod.containers[0].resources if pod and pod.containers else None
        limits = (resources.limits if resources else None) or {}
        return cls(
            run_id=run_id,
            namespace=str(metadata.namespace),
            name=str(metadata.name),
            uid=metadata.uid or "",
            created_at=metadata.creation_timestamp,
            terminating=metadata.deletion_timestamp is not None,
            active=status.active or 0,
            ready=status.ready or 0,
            crashes=(int(carried) if carried.isdecimal() else 0) + _deaths(status.failed or 0, ends.keys()),
            finished_at=end.last_transition_time if end else None,
            succeeded="Complete" in ends,
            failure=(failed.reason or "Failed") if failed else "",
            deadline_seconds=(spec.active_deadline_seconds if spec else None) or 0,
            memory_limit=limits.get("memory", ""),
        )

    @property
    def finished(self) -> bool:
        """Whether it will start no more pods."""
        return self.succeeded or bool(self.failure)

    @property
    def untouched(self) -> bool:
        """Whether nothing has happened to it since it was created."""
        began = self.active or self.ready or self.crashes
        return not (began or self.finished or self.terminating)


@dataclass(frozen=True)
class PodStatus:
    """A pod of a training Job."""

    name: str
    uid: str
    created_at: datetime | None
    phase: str
    unschedulable: str
    """The scheduler's message if no node fits the pod; else empty."""
    scheduled: bool
    waiting_reason: str
    waiting_message: str
    ended_reason: str
    """Why the container or the pod ended, such as ``OOMKilled``, ``Evicted`` or ``Error``."""
    ended_message: str
    exit_code: int | None
    run_pod: RunPod
    """The pod as the control plane records it, with the trainer's start and end."""
    controller_uid: str | None
    """Of the Job that controls it."""

    @classmethod
    def of(cls, pod: V1Pod) -> "PodStatus":
        """Read a pod."""
        metadata, status = metadata_of(pod), pod.status
        conditions = (status.conditions if status else None) or []
        scheduled = next((one for one in conditions if one.type == "PodScheduled"), None)
        refused = (
            scheduled is not None and scheduled.status == "False" and scheduled.reason == "Unschedulable"
        )
        containers = (status.container_statuses if status else None) or []
        state = (containers[0].state if containers else None) or V1ContainerState()
        waiting, ended = state.waiting, state.terminated
        running_since = state.running.started_at if state.running else None
        controllers = [owner.uid for owner in metadata.owner_references or [] if owner.controller]
        return cls(
            name=str(metadata.name),
            uid=metadata.uid or "",
            created_at=metadata.creation_timestamp,
            phase=(status.phase if status else None) or "Pending",
            unschedulable=(scheduled.message or "") if scheduled is not None and refused else "",
            scheduled=scheduled is not None and scheduled.status == "True",
            waiting_reason=(waiting.reason if waiting else None) or "",
            waiting_message=(waiting.message if waiting else None) or "",
            # The pod's own reason (Evicted) says more than that of the container that it ended.
            ended_reason=(status.reason if status else None) or (ended.reason if ended else None) or "",
            ended_message=(status.message if status else None) or (ended.message if ended else None) or "",
            exit_code=ended.exit_code if ended else None,
            run_pod=RunPod(
                uid=metadata.uid or "",
                started_at=running_since or (ended.started_at if ended else None),
                finished_at=ended.finished_at if ended else None,
            ),
            controller_uid=controllers[0] if controllers else None,
        )


def _deaths(failed: int, ends: Container[str]) -> int:
    """Count the pods of one Job that died: failed ones, and one that succeeded; at least one at its end."""
    if "Complete" in ends:
        return failed + 1
    return max(failed, 1) if "Failed" in ends else failed


def resource_of_labels(job: V1Job) -> ResourceRef | None:
    """Return the resource for which a Job was created, by its labels."""
    metadata = metadata_of(job)
    labels = metadata.labels or {}
    named = (kind for kind in PLURALS if kind == labels.get(KIND_LABEL))
    kind, name = next(named, None), labels.get(NAME_LABEL)
    return ResourceRef(kind, str(metadata.namespace), name) if kind and name else None


def is_owned(job: V1Job) -> bool:
    """Whether a resource of HMI controls a Job; anyone can write its labels."""
    owners = metadata_of(job).owner_references or []
    return any(owner.controller and owner.api_version == API_VERSION for owner in owners)


def job_view(job: JobStatus, pods: Sequence[PodStatus], warnings: Sequence[str] = ()) -> JobView:
    """Return the state of a run's Job for the planner.

    ``warnings`` are the messages of recent Warning Events on the Job or its newest pod. Only they say why a
    pod could not be created or its volumes not mounted.
    """
    return JobView(
        alive=not job.finished,
        crashes=job.crashes,
        ended_at=job.finished_at,
        queued=not job.finished and not job.ready,
        problem=problem_of(job, newest_of(pods), warnings),
    )


def newest_of(pods: Sequence[PodStatus]) -> PodStatus | None:
    """Return the pod that was created last."""
    return max(pods, key=lambda pod: pod.created_at or _EARLIEST, default=None)


def wants_pods(job: JobStatus) -> bool:
    """Whether a Job's pods must be read to know why none runs, or why one died."""
    return not (job.ready or job.succeeded or job.terminating or job.failure == _TOO_LONG)


def wants_warnings(job: JobStatus, pods: Sequence[PodStatus]) -> str | None:
    """Return the uid of the object whose Warning Events say why nothing runs; None when none are needed."""
    if job.finished or job.terminating:
        return None
    newest = newest_of(pods)
    if newest is None:
        return job.uid if not job.active else None
    explained = newest.waiting_reason in _IMAGE_REASONS | _CONFIG_REASONS
    stuck = newest.phase == "Pending" and newest.scheduled and not explained
    return newest.uid if stuck else None


def lacks_volume(pod: PodStatus, claim: str) -> bool:
    """Whether a pod waits for a PersistentVolumeClaim that was deleted."""
    return f'persistentvolumeclaim "{claim}" not found' in pod.unschedulable


def problem_of(job: JobStatus, newest: PodStatus | None, warnings: Sequence[str]) -> PodProblem | None:
    """Return why the run's trainer does not run, and what to do about it; None when there is no problem."""
    if job.terminating or job.succeeded or job.ready:
        return None
    if job.failure == _TOO_LONG:
        message = (
            f"Job {job.name} took longer than the {job.deadline_seconds} seconds that this installation "
            "allows. Train less (steps, epochs, rows), or have the installation's trainer deadline raised."
        )
        return PodProblem(Reason.DEADLINE_EXCEEDED, message, final=True)
    if newest is None:
        return refusal_of(warnings[0]) if warnings else None
    if newest.phase == "Failed":
        return _died(job, newest)
    if newest.phase == "Pending":
        return _pending(newest, warnings)
    return None


def _pending(pod: PodStatus, warnings: Sequence[str]) -> PodProblem | None:
    if pod.unschedulable:
        message = (
            f"No node fits pod {pod.name}: {_short(pod.unschedulable)} "
            "Lower spec.resources, or add nodes; it starts by itself then."
        )
        return PodProblem(Reason.UNSCHEDULABLE, message)
    if pod.waiting_reason in _IMAGE_REASONS:
        message = (
            f"The training image cannot be pulled: {_short(pod.waiting_message or pod.waiting_reason)} "
            "Have the installation's trainer image or its pull secret corrected."
        )
        return PodProblem(Reason.IMAGE_PULL_BACK_OFF, message)
    if pod.waiting_reason in _CONFIG_REASONS:
        message = (
            f"Pod {pod.name} cannot start: {_short(pod.waiting_message or pod.waiting_reason)} "
            "Create what is missing (a Secret that secretRef names?), or correct the spec."
        )
        return PodProblem(Reason.CREATE_CONTAINER_CONFIG_ERROR, message)
    if warnings:
        message = (
            f"Pod {pod.name} cannot start: {_short(warnings[0])} "
            "Create the ConfigMap, claim or Secret that is missing, or correct the address."
        )
        return PodProblem(Reason.VOLUME_NOT_MOUNTED, message)
    return None


def _died(job: JobStatus, pod: PodStatus) -> PodProblem:
    tries = f"It died {max(job.crashes, 1)} of {MAX_CRASHES} allowed times."
    if pod.ended_reason == "OOMKilled":
        limit = f" of {job.memory_limit}" if job.memory_limit else ""
        message = (
            f"Training needed more memory than its limit{limit}. {tries} "
            "Raise spec.resources.limits.memory, or lower training.batchSize or maxLength."
        )
        return PodProblem(Reason.OOM_KILLED, message)
    if pod.ended_reason == "Evicted":
        message = f"Pod {pod.name} was evicted: {_short(pod.ended_message)} It resumes from its checkpoint."
        return PodProblem(Reason.EVICTED, message)
    code = f" with code {pod.exit_code}" if pod.exit_code is not None else ""
    last = next((line for line in reversed(pod.ended_message.splitlines()) if line.strip()), "")
    said = f" Its last message: {_short(last)}" if last else ""
    message = (
        f"The training process ended{code}.{said} {tries} Read kubectl -n {job.namespace} logs {pod.name}."
    )
    return PodProblem(Reason.PROCESS_DIED, message)


def refusal_of(text: str) -> PodProblem:
    """Return the problem in the API server's message about an object that it did not admit."""
    if "exceeded quota" in text or "must specify" in text:
        message = (
            f"The namespace's ResourceQuota does not allow it: {_short(text)} "
            "Lower spec.resources, free some, or have the quota raised."
        )
        return PodProblem(Reason.QUOTA_EXCEEDED, message)
    message = f"The cluster does not admit the training Job: {_short(text)} Correct the spec or the policy."
    return PodProblem(Reason.JOB_REFUSED, message)


def _short(text: str) -> str:
    plain = " ".join(text.split())
    cut = plain if len(plain) <= _SHOWN_CHARACTERS else plain[: _SHOWN_CHARACTERS - 3] + "..."
    return cut if cut.endswith((".", "!", "?")) else f"{cut}."
