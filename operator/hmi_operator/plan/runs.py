"""What to do about a training run: start, resume, retry, replace or leave it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from hmi_api.internal.runs import (
    RETRIED_WITHOUT_LIMIT,
    TRAINING_ATTEMPTS,
    RunCreate,
    RunFailure,
    RunState,
    RunView,
)
from hmi_api.resources.common import Resources
from hmi_api.resources.domain import Domain
from hmi_api.resources.reasons import Reason
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.plan.steps import PublishAgainOrStartRun, ResumeRun, StartRun, Step, StopRun
from hmi_operator.plan.world import JobView, Trouble

MAX_ATTEMPTS = TRAINING_ATTEMPTS
MAX_CRASHES = 4
"""Deaths of one run's process before the run is failed."""
FIRST_BACKOFF = timedelta(seconds=5)
LONGEST_BACKOFF = timedelta(minutes=5)
POLL_SECONDS = 1.0
"""How often a run at work is asked for its progress."""

BLOCKED_SECONDS = 15.0
"""How often a run whose process cannot run is looked at, or its process asked for again."""

_ASKS_FOR_RESOURCES = {
    Reason.OOM_KILLED,
    Reason.PROCESS_DIED,
    Reason.DEADLINE_EXCEEDED,
    Reason.JOB_REFUSED,
}
"""Failures that other ``spec.resources``, which make no other version, may mend."""
_ACTIVE = (RunState.PENDING, RunState.RUNNING)


class Standpoint(Enum):
    """Where the training of the wanted digest stands."""

    UP_TO_DATE = auto()
    SUSPENDED = auto()
    STARTING = auto()
    QUEUED = auto()
    RUNNING = auto()
    RETRYING = auto()
    FAILED = auto()
    GATE_FAILED = auto()


@dataclass(frozen=True)
class Outlook:
    """A standpoint, the steps that follow from it and the run it speaks of."""

    standpoint: Standpoint
    steps: tuple[Step, ...] = ()
    run: RunView | None = None
    requeue_after: float | None = None
    message: str = ""
    trouble: Trouble | None = None
    """What keeps the run's process from running."""


@dataclass(frozen=True)
class RunFacts:
    """What an outlook is made from."""

    wanted: str
    """Digest of what should be published."""
    published: str | None
    """Digest of what is."""
    run: RunView | None
    job: JobView | None
    suspended: bool
    now: datetime
    resources: Resources
    """What the spec says that a process may use now."""


def backoff(failures: int) -> timedelta:
    """Return how long to wait after that many failures, doubling from the first."""
    doublings = min(max(failures - 1, 0), 16)
    return min(FIRST_BACKOFF * (1 << doublings), LONGEST_BACKOFF)


def is_active(run: RunView | None) -> bool:
    """Say whether a run is neither succeeded nor failed."""
    return run is not None and run.state in _ACTIVE


def is_run_of(run: RunView, resource: Domain | TaskAdapter) -> bool:
    """Say whether a run was made for this very object."""
    metadata, kind = resource.metadata, "domain" if isinstance(resource, Domain) else "adapter"
    made_for = (run.uid, run.spec.kind, run.spec.namespace, run.spec.name)
    return made_for == (metadata.uid, kind, metadata.namespace, metadata.name)


def look(facts: RunFacts, request: Callable[[int], RunCreate]) -> Outlook:
    """Return what to do next; ``request`` makes the run's request for an attempt (from 0)."""
    run = facts.run
    if facts.wanted == facts.published:
        return Outlook(Standpoint.UP_TO_DATE, _stop_superseded(run, facts.wanted))
    if run is None or run.spec_digest != facts.wanted:
        return _begin(facts, request)
    if run.state in _ACTIVE:
        return _look_at_active(facts, run)
    if run.state is RunState.FAILED:
        return _look_at_failed(facts, run, request)
    return _look_at_succeeded(facts, run, request)


def _begin(facts: RunFacts, request: Callable[[int], RunCreate]) -> Outlook:
    stop = _stop_superseded(facts.run, facts.wanted)
    if facts.suspended:
        return Outlook(Standpoint.SUSPENDED, stop)
    if facts.published is None:
        start: Step = StartRun(request(0), "nothing is published")
    else:
        start = PublishAgainOrStartRun(request(0), "what is published was made from another spec")
    return Outlook(Standpoint.STARTING, (*stop, start), requeue_after=0.0)


def _look_at_succeeded(facts: RunFacts, run: RunView, request: Callable[[int], RunCreate]) -> Outlook:
    if run.result is not None and not run.result.gate_passed:
        return Outlook(Standpoint.GATE_FAILED, run=run)
    if facts.suspended:
        return Outlook(Standpoint.SUSPENDED, run=run)
    # It was published once and then replaced by another spec's version; the older spec is wanted again.
    again = PublishAgainOrStartRun(request(run.attempt + 1), "an earlier spec is wanted again")
    return Outlook(Standpoint.STARTING, (again,), requeue_after=0.0)


def _stop_superseded(run: RunView | None, wanted: str) -> tuple[Step, ...]:
    if run is None or not is_active(run) or run.spec_digest == wanted:
        return ()
    failure = RunFailure(
        reason=Reason.SUPERSEDED.value, message="A newer spec took this run's place.", retryable=True
    )
    return (StopRun(run.id, failure, "the run makes what is no longer wanted"),)


def _look_at_active(facts: RunFacts, run: RunView) -> Outlook:
    job = facts.job
    trouble = job.trouble if job is not None else None
    if trouble is not None and _asks_otherwise(facts, run):
        failure = RunFailure(
            reason=Reason.SUPERSEDED.value, message="spec.resources was changed.", retryable=True
        )
        stop = StopRun(run.id, failure, f"spec.resources was changed, and {trouble.reason} kept the run back")
        return Outlook(Standpoint.STARTING, (stop,), requeue_after=0.0)
    if job is not None and job.alive:
        return _look_at_alive(run, job)
    if facts.suspended:
        return Outlook(Standpoint.SUSPENDED, run=run)
    return _look_at_dead(facts, run, job, trouble)


def _look_at_dead(facts: RunFacts, run: RunView, job: JobView | None, trouble: Trouble | None) -> Outlook:
    crashes = job.crashes if job is not None else 0
    if crashes >= MAX_CRASHES or (trouble is not None and trouble.final):
        why = f"its process died {crashes} times" if crashes else "its process cannot be made"
        stop = StopRun(run.id, _death(run, crashes, trouble), why)
        return Outlook(Standpoint.RUNNING, (stop,), run, requeue_after=0.0)
    if trouble is not None and not crashes:
        return _look_at_refused(facts, run, trouble)
    wait = _seconds_left(job, crashes, facts.now)
    if crashes and wait > 0:
        message = "The training process ended without a result; it is started again shortly."
        return Outlook(Standpoint.RETRYING, run=run, requeue_after=wait, message=message, trouble=trouble)
    resume = ResumeRun(run.id, "the run is not finished and has no process")
    return Outlook(Standpoint.RUNNING, (resume,), run, requeue_after=POLL_SECONDS)


def _look_at_alive(run: RunView, job: JobView) -> Outlook:
    if job.trouble is not None:
        standpoint = Standpoint.RETRYING if job.crashes else Standpoint.QUEUED
        return Outlook(standpoint, run=run, requeue_after=BLOCKED_SECONDS, trouble=job.trouble)
    standpoint = Standpoint.QUEUED if job.queued else Standpoint.RUNNING
    return Outlook(standpoint, run=run, requeue_after=POLL_SECONDS)


def _look_at_refused(facts: RunFacts, run: RunView, trouble: Trouble) -> Outlook:
    """A process that could not even be made is asked for again now and then: quotas are raised and freed."""
    refused_at = facts.job.ended_at if facts.job is not None else None
    passed = (facts.now - refused_at).total_seconds() if refused_at is not None else BLOCKED_SECONDS
    wait = BLOCKED_SECONDS - passed
    if wait > 0:
        return Outlook(Standpoint.QUEUED, run=run, requeue_after=wait, trouble=trouble)
    again = ResumeRun(run.id, f"its process could not be made ({trouble.reason}), which may have passed")
    return Outlook(Standpoint.QUEUED, (again,), run, requeue_after=POLL_SECONDS, trouble=trouble)


def _death(run: RunView, crashes: int, trouble: Trouble | None) -> RunFailure:
    if trouble is not None:
        return RunFailure(reason=str(trouble.reason), message=trouble.message)
    message = f"The training process died {crashes} times; read the log of run {run.id}."
    return RunFailure(reason=Reason.PROCESS_DIED.value, message=message)


def _asks_otherwise(facts: RunFacts, run: RunView) -> bool:
    """Say whether the spec asks for other resources now than when the run was made."""
    return facts.resources != run.spec.spec.resources


def _look_at_failed(facts: RunFacts, run: RunView, request: Callable[[int], RunCreate]) -> Outlook:
    failure = run.failure or RunFailure(reason=Reason.PROCESS_DIED.value, message="The run gave no cause.")
    superseded = failure.reason == Reason.SUPERSEDED
    mended = failure.reason in _ASKS_FOR_RESOURCES and _asks_otherwise(facts, run)
    attempts_left = run.attempt + 1 < MAX_ATTEMPTS or failure.reason in RETRIED_WITHOUT_LIMIT
    may_retry = superseded or mended or (failure.retryable and attempts_left)
    if not may_retry:
        return Outlook(Standpoint.FAILED, run=run, message=failure.message)
    if facts.suspended:
        return Outlook(Standpoint.SUSPENDED, run=run)
    wait = 0.0 if superseded or mended else _seconds_left(facts.job, run.attempt + 1, facts.now)
    if wait > 0:
        message = f"{failure.message} It is tried again shortly ({failure.reason})."
        return Outlook(Standpoint.RETRYING, run=run, requeue_after=wait, message=message)
    again = StartRun(
        request(run.attempt + 1), f"attempt {run.attempt} failed for a passing cause: {failure.reason}"
    )
    return Outlook(Standpoint.STARTING, (again,), requeue_after=0.0)


def _seconds_left(job: JobView | None, failures: int, now: datetime) -> float:
    """Return the rest of the wait after a failure; none where nobody remembers when it was."""
    if job is None or job.ended_at is None:
        return 0.0
    return max((job.ended_at + backoff(failures) - now).total_seconds(), 0.0)
