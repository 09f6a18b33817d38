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
from hmi_operator.planning.actions import Action, PublishAgainOrStartRun, ResumeRun, StartRun, StopRun
from hmi_operator.planning.observed import JobView, PodProblem

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


class TrainingPhase(Enum):
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
class Decision:
    """A phase, the actions that follow from it and the run it speaks of."""

    phase: TrainingPhase
    actions: tuple[Action, ...] = ()
    run: RunView | None = None
    requeue_after: float | None = None
    message: str = ""
    problem: PodProblem | None = None
    """What keeps the run's process from running."""


@dataclass(frozen=True)
class TrainingState:
    """What a decision depends on."""

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


def decide_training(state: TrainingState, request: Callable[[int], RunCreate]) -> Decision:
    """Return what to do next; ``request`` makes the run's request for an attempt (from 0)."""
    run = state.run
    if state.wanted == state.published:
        return Decision(TrainingPhase.UP_TO_DATE, _stop_superseded(run, state.wanted))
    if run is None or run.spec_digest != state.wanted:
        return _begin(state, request)
    if run.state in _ACTIVE:
        return _decide_active(state, run)
    if run.state is RunState.FAILED:
        return _decide_failed(state, run, request)
    return _decide_succeeded(state, run, request)


def _begin(state: TrainingState, request: Callable[[int], RunCreate]) -> Decision:
    stop = _stop_superseded(state.run, state.wanted)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, stop)
    if state.published is None:
        start: Action = StartRun(request(0), "nothing is published")
    else:
        start = PublishAgainOrStartRun(request(0), "what is published was made from another spec")
    return Decision(TrainingPhase.STARTING, (*stop, start), requeue_after=0.0)


def _decide_succeeded(state: TrainingState, run: RunView, request: Callable[[int], RunCreate]) -> Decision:
    if run.result is not None and not run.result.gate_passed:
        return Decision(TrainingPhase.GATE_FAILED, run=run)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, run=run)
    # It was published once and then replaced by another spec's version; the older spec is wanted again.
    again = PublishAgainOrStartRun(request(run.attempt + 1), "an earlier spec is wanted again")
    return Decision(TrainingPhase.STARTING, (again,), requeue_after=0.0)


def _stop_superseded(run: RunView | None, wanted: str) -> tuple[Action, ...]:
    if run is None or not is_active(run) or run.spec_digest == wanted:
        return ()
    failure = RunFailure(
        reason=Reason.SUPERSEDED.value, message="A newer spec took this run's place.", retryable=True
    )
    return (StopRun(run.id, failure, "the run makes what is no longer wanted"),)


def _decide_active(state: TrainingState, run: RunView) -> Decision:
    job = state.job
    problem = job.problem if job is not None else None
    if problem is not None and _asks_otherwise(state, run):
        failure = RunFailure(
            reason=Reason.SUPERSEDED.value, message="spec.resources was changed.", retryable=True
        )
        stop = StopRun(run.id, failure, f"spec.resources was changed, and {problem.reason} kept the run back")
        return Decision(TrainingPhase.STARTING, (stop,), requeue_after=0.0)
    if job is not None and job.alive:
        return _decide_alive(run, job)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, run=run)
    return _decide_dead(state, run, job, problem)


def _decide_dead(
    state: TrainingState, run: RunView, job: JobView | None, problem: PodProblem | None
) -> Decision:
    crashes = job.crashes if job is not None else 0
    if crashes >= MAX_CRASHES or (problem is not None and problem.final):
        why = f"its process died {crashes} times" if crashes else "its process cannot be made"
        stop = StopRun(run.id, _death(run, crashes, problem), why)
        return Decision(TrainingPhase.RUNNING, (stop,), run, requeue_after=0.0)
    if problem is not None and not crashes:
        return _decide_refused(state, run, problem)
    wait = _seconds_left(job, crashes, state.now)
    if crashes and wait > 0:
        message = "The training process ended without a result; it is started again shortly."
        return Decision(TrainingPhase.RETRYING, run=run, requeue_after=wait, message=message, problem=problem)
    resume = ResumeRun(run.id, "the run is not finished and has no process")
    return Decision(TrainingPhase.RUNNING, (resume,), run, requeue_after=POLL_SECONDS)


def _decide_alive(run: RunView, job: JobView) -> Decision:
    if job.problem is not None:
        phase = TrainingPhase.RETRYING if job.crashes else TrainingPhase.QUEUED
        return Decision(phase, run=run, requeue_after=BLOCKED_SECONDS, problem=job.problem)
    phase = TrainingPhase.QUEUED if job.queued else TrainingPhase.RUNNING
    return Decision(phase, run=run, requeue_after=POLL_SECONDS)


def _decide_refused(state: TrainingState, run: RunView, problem: PodProblem) -> Decision:
    """A process that could not even be made is asked for again now and then: quotas are raised and freed."""
    refused_at = state.job.ended_at if state.job is not None else None
    passed = (state.now - refused_at).total_seconds() if refused_at is not None else BLOCKED_SECONDS
    wait = BLOCKED_SECONDS - passed
    if wait > 0:
        return Decision(TrainingPhase.QUEUED, run=run, requeue_after=wait, problem=problem)
    again = ResumeRun(run.id, f"its process could not be made ({problem.reason}), which may have passed")
    return Decision(TrainingPhase.QUEUED, (again,), run, requeue_after=POLL_SECONDS, problem=problem)


def _death(run: RunView, crashes: int, problem: PodProblem | None) -> RunFailure:
    if problem is not None:
        return RunFailure(reason=str(problem.reason), message=problem.message)
    message = f"The training process died {crashes} times; read the log of run {run.id}."
    return RunFailure(reason=Reason.PROCESS_DIED.value, message=message)


def _asks_otherwise(state: TrainingState, run: RunView) -> bool:
    """Say whether the spec asks for other resources now than when the run was made."""
    return state.resources != run.spec.spec.resources


def _decide_failed(state: TrainingState, run: RunView, request: Callable[[int], RunCreate]) -> Decision:
    failure = run.failure or RunFailure(reason=Reason.PROCESS_DIED.value, message="The run gave no cause.")
    superseded = failure.reason == Reason.SUPERSEDED
    mended = failure.reason in _ASKS_FOR_RESOURCES and _asks_otherwise(state, run)
    attempts_left = run.attempt + 1 < MAX_ATTEMPTS or failure.reason in RETRIED_WITHOUT_LIMIT
    may_retry = superseded or mended or (failure.retryable and attempts_left)
    if not may_retry:
        return Decision(TrainingPhase.FAILED, run=run, message=failure.message)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, run=run)
    wait = 0.0 if superseded or mended else _seconds_left(state.job, run.attempt + 1, state.now)
    if wait > 0:
        message = f"{failure.message} It is tried again shortly ({failure.reason})."
        return Decision(TrainingPhase.RETRYING, run=run, requeue_after=wait, message=message)
    again = StartRun(
        request(run.attempt + 1), f"attempt {run.attempt} failed for a passing cause: {failure.reason}"
    )
    return Decision(TrainingPhase.STARTING, (again,), requeue_after=0.0)


def _seconds_left(job: JobView | None, failures: int, now: datetime) -> float:
    """Return the rest of the wait after a failure; none where nobody remembers when it was."""
    if job is None or job.ended_at is None:
        return 0.0
    return max((job.ended_at + backoff(failures) - now).total_seconds(), 0.0)
