"""What a run's Job and pods say of its process, in the plan's terms. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hmi_api.resources.reasons import Reason
from hmi_operator.kubernetes.jobs.facts import JobFacts, PodFacts
from hmi_operator.planning import JobView, PodProblem
from hmi_operator.planning.training import MAX_CRASHES

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


def job_view(job: JobFacts, pods: Sequence[PodFacts], warnings: Sequence[str] = ()) -> JobView:
    """Return what is known of a run's process.

    ``warnings`` are the messages of recent warning events on the Job or its newest pod, which alone say why
    a pod could not be made or its volumes not be mounted.
    """
    return JobView(
        alive=not job.finished,
        crashes=job.crashes,
        ended_at=job.finished_at,
        queued=not job.finished and not job.ready,
        problem=trouble_of(job, newest_of(pods), warnings),
    )


def newest_of(pods: Sequence[PodFacts]) -> PodFacts | None:
    """Return the pod that was made last."""
    return max(pods, key=lambda pod: pod.created_at or _EARLIEST, default=None)


def wants_pods(job: JobFacts) -> bool:
    """Say whether a Job's pods must be read to know why nothing runs, or why it died."""
    return not (job.ready or job.succeeded or job.terminating or job.failure == _TOO_LONG)


def wants_warnings(job: JobFacts, pods: Sequence[PodFacts]) -> str | None:
    """Return the uid of the object whose warning events say why nothing runs; None when nobody need ask."""
    if job.finished or job.terminating:
        return None
    newest = newest_of(pods)
    if newest is None:
        return job.uid if not job.active else None
    stuck = newest.phase == "Pending" and newest.scheduled and not _is_told(newest)
    return newest.uid if stuck else None


def lacks_volume(pod: PodFacts, claim: str) -> bool:
    """Say whether a pod waits for a claim that somebody deleted."""
    return f'persistentvolumeclaim "{claim}" not found' in pod.unschedulable


def trouble_of(job: JobFacts, newest: PodFacts | None, warnings: Sequence[str]) -> PodProblem | None:
    """Return why the run's process does not run, and what to do about it; None when all is well."""
    if job.terminating or job.succeeded or job.ready:
        return None
    if job.failure == _TOO_LONG:
        message = (
            f"Job {job.name} took longer than the {job.deadline_seconds} seconds that this installation "
            "allows. Ask for less (steps, epochs, rows), or have the installation's trainer deadline raised."
        )
        return PodProblem(Reason.DEADLINE_EXCEEDED, message, final=True)
    if newest is None:
        return _not_made(warnings)
    if newest.phase == "Failed":
        return _died(job, newest)
    if newest.phase == "Pending":
        return _pending(newest, warnings)
    return None


def _pending(pod: PodFacts, warnings: Sequence[str]) -> PodProblem | None:
    if pod.unschedulable:
        message = (
            f"No node takes pod {pod.name}: {_short(pod.unschedulable)} "
            "Ask for less in spec.resources, or add nodes; it starts by itself then."
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


def _died(job: JobFacts, pod: PodFacts) -> PodProblem:
    tries = f"It died {max(job.crashes, 1)} of {MAX_CRASHES} allowed times."
    if pod.ended_reason == "OOMKilled":
        limit = f" of {job.memory_limit}" if job.memory_limit else ""
        message = (
            f"Training needed more memory than its limit{limit}. {tries} "
            "Raise spec.resources.limits.memory, or lower training.batchSize or maxLength."
        )
        return PodProblem(Reason.OOM_KILLED, message)
    if pod.ended_reason == "Evicted":
        message = f"Pod {pod.name} was evicted: {_short(pod.ended_message)} It goes on from its checkpoint."
        return PodProblem(Reason.EVICTED, message)
    code = f" with code {pod.exit_code}" if pod.exit_code is not None else ""
    last = _last_line(pod.ended_message)
    said = f" Its last words: {_short(last)}" if last else ""
    message = (
        f"The training process ended{code}.{said} {tries} Read kubectl -n {job.namespace} logs {pod.name}."
    )
    return PodProblem(Reason.PROCESS_DIED, message)


def _not_made(warnings: Sequence[str]) -> PodProblem | None:
    return refusal_of(warnings[0]) if warnings else None


def refusal_of(words: str) -> PodProblem:
    """Return the trouble in the API server's words about an object that it did not admit."""
    if "exceeded quota" in words or "must specify" in words:
        message = (
            f"The namespace's ResourceQuota does not allow it: {_short(words)} "
            "Ask for less in spec.resources, free some, or have the quota raised."
        )
        return PodProblem(Reason.QUOTA_EXCEEDED, message)
    message = f"The cluster does not admit the training Job: {_short(words)} Correct the spec or the policy."
    return PodProblem(Reason.JOB_REFUSED, message)


def _last_line(words: str) -> str:
    """Return the last line of a log that says something."""
    return next((line for line in reversed(words.splitlines()) if line.strip()), "")


def _is_told(pod: PodFacts) -> bool:
    """Say whether the pod itself tells why it waits."""
    return pod.waiting_reason in _IMAGE_REASONS | _CONFIG_REASONS


def _short(words: str) -> str:
    plain = " ".join(words.split())
    cut = plain if len(plain) <= _SHOWN_CHARACTERS else plain[: _SHOWN_CHARACTERS - 3] + "..."
    return cut if cut.endswith((".", "!", "?")) else f"{cut}."
