"""What to do about a training run: start, resume, retry, replace or leave it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from hmi_api.internal.runs import (
    RETRIED_WITHOUT_LIMIT,
    TRAINING_ATTEMPTS,
    AdapterRunSpec,
    DomainRunSpec,
    RunCreate,
    RunFailure,
    RunState,
    RunView,
)
from hmi_api.names import RETRAIN_ANNOTATION, Digest
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_api.resources.reasons import Reason
from hmi_operator.planning.actions import Action, PublishAgainOrStartRun, ResumeRun, StartRun, StopRun
from hmi_operator.planning.observed import JobView, ObservedAdapter, ObservedDomain, PodProblem

MAX_ATTEMPTS = TRAINING_ATTEMPTS
MAX_CRASHES = 4
"""Ends of one run's Job without a result before the run fails."""
FIRST_BACKOFF = timedelta(seconds=5)
LONGEST_BACKOFF = timedelta(minutes=5)
POLL_SECONDS = 1.0
"""How often the progress of an active run is polled."""
BLOCKED_SECONDS = 15.0
"""How often a run whose Job cannot start is checked, or its Job created again."""

_RESOURCE_FAILURES = {
    Reason.OOM_KILLED,
    Reason.PROCESS_DIED,
    Reason.DEADLINE_EXCEEDED,
    Reason.JOB_REFUSED,
}
"""Failures that a change of ``spec.resources``, which makes no other version, may repair."""
_ACTIVE = (RunState.PENDING, RunState.RUNNING)


class TrainingPhase(Enum):
    """The state of the training for a spec digest."""

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
    """The training phase, its actions, and the run that it is about."""

    phase: TrainingPhase
    actions: tuple[Action, ...] = ()
    run: RunView | None = None
    requeue_after: float | None = None
    message: str = ""
    problem: PodProblem | None = None
    """What keeps the run's Job from running."""


@dataclass(frozen=True)
class _Training:
    """What a decision depends on."""

    resource: Resource
    observed: ObservedDomain | ObservedAdapter
    wanted: Digest
    """Digest of what should be published."""
    spec: DomainRunSpec | AdapterRunSpec

    @property
    def suspended(self) -> bool:
        return self.resource.spec.suspend

    def request(self, attempt: int) -> RunCreate:
        """Return the request of a run for an attempt, counted from 0."""
        return RunCreate(
            uid=self.resource.metadata.uid,
            tenant=self.observed.tenant,
            spec_digest=self.wanted,
            attempt=attempt,
            spec=self.spec,
        )

    def resources_changed(self, run: RunView) -> bool:
        """Return whether ``spec.resources`` changed since the run was created."""
        return self.resource.spec.resources != run.spec.spec.resources


def backoff(failures: int) -> timedelta:
    """Return the wait after so many failures: it doubles with each."""
    doublings = min(max(failures - 1, 0), 16)
    return min(FIRST_BACKOFF * (1 << doublings), LONGEST_BACKOFF)


def is_active(run: RunView | None) -> bool:
    """Return whether a run has neither succeeded nor failed."""
    return run is not None and run.state in _ACTIVE


def is_run_of(run: RunView, resource: Resource) -> bool:
    """Return whether a run was created for this very object."""
    metadata, kind = resource.metadata, "domain" if isinstance(resource, Domain) else "adapter"
    made_for = (run.uid, run.spec.kind, run.spec.namespace, run.spec.name)
    return made_for == (metadata.uid, kind, metadata.namespace, metadata.name)


def decide_training(
    resource: Resource,
    observed: ObservedDomain | ObservedAdapter,
    wanted: Digest,
    run_spec: DomainRunSpec | AdapterRunSpec,
) -> Decision:
    """Return what to do so that a version with the digest ``wanted`` is trained from ``run_spec``."""
    state, run, current = _Training(resource, observed, wanted, run_spec), observed.run, observed.current
    if current is not None and wanted == current.spec_digest:
        return Decision(TrainingPhase.UP_TO_DATE, _stop_superseded(run, wanted))
    if run is None or run.spec_digest != wanted:
        return _begin(state)
    if run.state is not RunState.SUCCEEDED:
        return decide_run(resource, observed, run, run_spec)
    return _decide_succeeded(state, run)


def decide_run(
    resource: Resource,
    observed: ObservedDomain | ObservedAdapter,
    run: RunView,
    run_spec: DomainRunSpec | AdapterRunSpec,
) -> Decision:
    """Return what to do about a run that has not succeeded: ``observed`` has its Job.

    Another attempt gets ``run_spec``, whose ``resources`` may have changed since the run was created.
    """
    state = _Training(resource, observed, Digest(run.spec_digest), run_spec)
    return _decide_active(state, run) if run.state in _ACTIVE else _decide_failed(state, run)


def _begin(state: _Training) -> Decision:
    stop = _stop_superseded(state.observed.run, state.wanted)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, stop)
    if state.observed.current is None:
        start: Action = StartRun(state.request(0), why="nothing is published")
    else:
        start = PublishAgainOrStartRun(state.request(0), why="the published version is of another spec")
    return Decision(TrainingPhase.STARTING, (*stop, start), requeue_after=0.0)


def _decide_succeeded(state: _Training, run: RunView) -> Decision:
    if run.result is not None and not run.result.gate_passed:
        return Decision(TrainingPhase.GATE_FAILED, run=run)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, run=run)
    # The run's version was published and then replaced; now its spec is declared again.
    again = PublishAgainOrStartRun(state.request(run.attempt + 1), why="an earlier spec is declared again")
    return Decision(TrainingPhase.STARTING, (again,), requeue_after=0.0)


def _stop_superseded(run: RunView | None, wanted: str) -> tuple[Action, ...]:
    if run is None or not is_active(run) or run.spec_digest == wanted:
        return ()
    failure = RunFailure(
        reason=Reason.SUPERSEDED.value, message="A newer spec took this run's place.", retryable=True
    )
    return (StopRun(run.id, failure, why="the run is for a superseded spec"),)


def _decide_active(state: _Training, run: RunView) -> Decision:
    job = state.observed.job
    problem = job.problem if job is not None else None
    if problem is not None and state.resources_changed(run):
        failure = RunFailure(
            reason=Reason.SUPERSEDED.value, message="spec.resources was changed.", retryable=True
        )
        stop = StopRun(run.id, failure, why=f"spec.resources was changed, and the Job has {problem.reason}")
        return Decision(TrainingPhase.STARTING, (stop,), requeue_after=0.0)
    if job is not None and job.alive:
        return _decide_alive(run, job)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, run=run)
    return _decide_ended(state, run, job, problem)


def _decide_ended(
    state: _Training, run: RunView, job: JobView | None, problem: PodProblem | None
) -> Decision:
    crashes = job.crashes if job is not None else 0
    if crashes >= MAX_CRASHES or (problem is not None and problem.final):
        why = f"its Job ended {crashes} times without a result" if crashes else "its Job cannot be created"
        stop = StopRun(run.id, _failure_of(run, crashes, problem), why=why)
        return Decision(TrainingPhase.RUNNING, (stop,), run, requeue_after=0.0)
    if problem is not None and not crashes:
        return _decide_rejected(state, run, problem)
    wait = _seconds_left(job, crashes, state.observed.now)
    if crashes and wait > 0:
        message = "The training process ended without a result; it is started again shortly."
        return Decision(TrainingPhase.RETRYING, run=run, requeue_after=wait, message=message, problem=problem)
    resume = ResumeRun(run.id, why="the run is not finished and has no Job")
    return Decision(TrainingPhase.RUNNING, (resume,), run, requeue_after=POLL_SECONDS)


def _decide_alive(run: RunView, job: JobView) -> Decision:
    if job.problem is not None:
        phase = TrainingPhase.RETRYING if job.crashes else TrainingPhase.QUEUED
        return Decision(phase, run=run, requeue_after=BLOCKED_SECONDS, problem=job.problem)
    phase = TrainingPhase.QUEUED if job.queued else TrainingPhase.RUNNING
    return Decision(phase, run=run, requeue_after=POLL_SECONDS)


def _decide_rejected(state: _Training, run: RunView, problem: PodProblem) -> Decision:
    """Create a Job again that the API server rejected, now and then: quotas are raised and freed."""
    rejected_at = state.observed.job.ended_at if state.observed.job is not None else None
    passed = (
        (state.observed.now - rejected_at).total_seconds() if rejected_at is not None else BLOCKED_SECONDS
    )
    wait = BLOCKED_SECONDS - passed
    if wait > 0:
        return Decision(TrainingPhase.QUEUED, run=run, requeue_after=wait, problem=problem)
    again = ResumeRun(run.id, why=f"its Job could not be created ({problem.reason}), which may have passed")
    return Decision(TrainingPhase.QUEUED, (again,), run, requeue_after=POLL_SECONDS, problem=problem)


def _failure_of(run: RunView, crashes: int, problem: PodProblem | None) -> RunFailure:
    if problem is not None:
        return RunFailure(reason=str(problem.reason), message=problem.message)
    message = f"The training process died {crashes} times; read the log of run {run.id}."
    return RunFailure(reason=Reason.PROCESS_DIED.value, message=message)


def _decide_failed(state: _Training, run: RunView) -> Decision:
    failure = run.failure or RunFailure(reason=Reason.PROCESS_DIED.value, message="The run gave no cause.")
    superseded = failure.reason == Reason.SUPERSEDED
    mended = failure.reason in _RESOURCE_FAILURES and state.resources_changed(run)
    attempts_left = run.attempt + 1 < MAX_ATTEMPTS or failure.reason in RETRIED_WITHOUT_LIMIT
    may_retry = superseded or mended or (failure.retryable and attempts_left)
    if not may_retry:
        message = f"{failure.message} To train again, change the spec or the annotation {RETRAIN_ANNOTATION}."
        return Decision(TrainingPhase.FAILED, run=run, message=message)
    if state.suspended:
        return Decision(TrainingPhase.SUSPENDED, run=run)
    wait = (
        0.0
        if superseded or mended
        else _seconds_left(state.observed.job, run.attempt + 1, state.observed.now)
    )
    if wait > 0:
        message = f"{failure.message} It is tried again shortly ({failure.reason})."
        return Decision(TrainingPhase.RETRYING, run=run, requeue_after=wait, message=message)
    again = StartRun(
        state.request(run.attempt + 1),
        why=f"attempt {run.attempt} failed, and {failure.reason} can be retried",
    )
    return Decision(TrainingPhase.STARTING, (again,), requeue_after=0.0)


def _seconds_left(job: JobView | None, failures: int, now: datetime) -> float:
    """Return the seconds left to wait after a failure; 0 if its time is unknown."""
    if job is None or job.ended_at is None:
        return 0.0
    return max((job.ended_at + backoff(failures) - now).total_seconds(), 0.0)
