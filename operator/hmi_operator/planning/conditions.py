"""The conditions and the phase of a status: of a training run, of serving, and their summary."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import AdapterVersionView, AdapterView, EarlierVersion, LoadError
from hmi_api.internal.runs import RunFailure, RunProgress
from hmi_api.internal.runtimes import PASSING_LOAD_FAILURES
from hmi_api.resources.common import ArtifactStatus, DataRead, format_time
from hmi_api.resources.conditions import (
    Condition,
    ConditionStatus,
    DomainCondition,
    Phase,
    TaskAdapterCondition,
    find_condition,
    set_condition,
)
from hmi_api.resources.kinds import Resource
from hmi_api.resources.reasons import Reason
from hmi_operator.planning.observed import ObservedAdapter, ObservedDomain, PodProblem
from hmi_operator.planning.training import Decision, TrainingPhase

_RECONCILING, _STALLED = DomainCondition.RECONCILING, DomainCondition.STALLED


class ConditionWriter:
    """Collects a plan's conditions, all with one generation and time; old ones that it does not set stay."""

    def __init__(self, old: Sequence[Condition], *, generation: int, now: datetime) -> None:
        self._conditions = list(old)
        self._generation = generation
        self._now = format_time(now)

    @classmethod
    def of(cls, resource: Resource, now: datetime) -> "ConditionWriter":
        """Return a writer that continues a resource's present conditions."""
        return cls(resource.status.conditions, generation=resource.metadata.generation, now=now)

    @property
    def written(self) -> list[Condition]:
        """All conditions, old and new."""
        return list(self._conditions)

    def true(self, type_: str, reason: str, message: str = "") -> None:
        """Set a condition to True."""
        self._set(type_, ConditionStatus.TRUE, reason, message)

    def false(self, type_: str, reason: str, message: str) -> None:
        """Set a condition to False."""
        self._set(type_, ConditionStatus.FALSE, reason, message)

    def unknown(self, type_: str, reason: str, message: str = "") -> None:
        """Set a condition to Unknown: in progress or not reached."""
        self._set(type_, ConditionStatus.UNKNOWN, reason, message)

    def not_ready(self, types: Sequence[str]) -> None:
        """Set Ready to False, with reason and message of the first of ``types`` that is not True."""
        condition = self.first_not_true(types)
        if condition is not None:
            self.false(DomainCondition.READY, condition.reason, condition.message)

    def first_not_true(self, types: Sequence[str]) -> Condition | None:
        """Return the first condition of ``types`` that is not True; None if all are."""
        found = (find_condition(self._conditions, type_) for type_ in types)
        return next((one for one in found if one is not None and one.status != ConditionStatus.TRUE), None)

    # --- kstatus: at most one of Reconciling and Stalled is True ------------------------------------

    def reconciling(self, reason: str, message: str) -> None:
        """Set Reconciling: the spec is not in effect yet, and work on it continues."""
        self.true(_RECONCILING, reason, message)
        self.false(_STALLED, Reason.PROGRESSING, "")

    def stalled(self, reason: str, message: str) -> None:
        """Set Stalled: the spec is not in effect, and somebody must change something."""
        self.false(_RECONCILING, Reason.STALLED, "")
        self.true(_STALLED, reason, message)

    def at_rest(self, reason: str = Reason.UP_TO_DATE) -> None:
        """Set neither Reconciling nor Stalled: there is nothing to do."""
        self.false(_RECONCILING, reason, "")
        self.false(_STALLED, reason, "")

    def _set(self, type_: str, status: ConditionStatus, reason: str, message: str) -> None:
        self._conditions = set_condition(
            self._conditions,
            str(type_),
            status,
            str(reason),
            message,
            generation=self._generation,
            now=self._now,
        )


def common_status(
    resource: Resource,
    observed: ObservedDomain | ObservedAdapter,
    writer: ConditionWriter,
    phase: str,
    artifact: ArtifactRef | None,
) -> dict[str, Any]:
    """Return the fields that both kinds of status have; ``artifact`` is the published version's."""
    current = observed.current
    return {
        "observed_generation": resource.metadata.generation,
        "phase": phase,
        "conditions": writer.written,
        "version": current.version if current else None,
        "artifact": artifact and ArtifactStatus.model_validate(artifact, from_attributes=True),
        "metrics": dict(current.metrics) if current else {},
        "data": list(current.data) if current else [],
        "run_ref": resource.status.run_ref,
    }


def progress_text(decision: Decision) -> str | None:
    """Return the active run's progress, such as ``training 120/400``; None if no run is active."""
    progress = decision.run.progress if decision.run else None
    if progress is None or decision.phase not in (TrainingPhase.RUNNING, TrainingPhase.QUEUED):
        return None
    return f"{progress.stage} {progress.step}/{progress.total}"


def data_read(decision: Decision, published: Sequence[DataRead]) -> list[DataRead]:
    """Return the data that the decision's run has read; without a run, ``published``."""
    run = decision.run
    if run is None:
        return list(published)
    reports = (run.result, run.failure, run.progress)
    return next((list(report.data) for report in reports if report is not None and report.data), [])


def data_text(data: Sequence[DataRead]) -> str:
    """Return a description of the data, for a condition's message."""
    return " ".join(read.sentence() for read in data)


def write_waiting(writer: ConditionWriter, types: Sequence[str], reason: str, message: str) -> None:
    """Set each type to Unknown: it is not reached."""
    for type_ in types:
        writer.unknown(type_, reason, message)


def write_stages(
    writer: ConditionWriter, types: Sequence[str], stages: Mapping[str, str], decision: Decision
) -> None:
    """Write the conditions ``types`` of a run that has not published yet, in order.

    ``stages`` maps the stages of a run to conditions; unknown stages belong to the first condition.
    """
    phase = decision.phase
    if phase is TrainingPhase.SUSPENDED:
        write_waiting(writer, types, Reason.SUSPENDED, "spec.suspend is true: nothing new is started.")
        return
    if phase is TrainingPhase.STARTING or decision.run is None:
        write_waiting(writer, types, Reason.STARTING, "A training run is being started.")
        return
    run = decision.run
    failure = run.failure if phase is TrainingPhase.FAILED else None
    at = types.index(_condition_at(run.progress, failure, types, stages))
    read, reads = data_text(data_read(decision, ())), stages.get("corpus")
    for type_ in types[:at]:
        writer.true(type_, Reason.SUCCEEDED, read if type_ == reads else "")
    if phase is TrainingPhase.FAILED:
        reason = failure.reason if failure else Reason.PROCESS_DIED
        writer.false(types[at], reason, decision.message)
    elif decision.problem is not None:
        _write_problem(writer, types, stages, at, decision.problem)
        return
    elif phase is TrainingPhase.RETRYING:
        writer.unknown(types[at], Reason.RETRYING, decision.message)
    elif phase is TrainingPhase.QUEUED:
        writer.unknown(types[at], Reason.QUEUED, f"Training run {run.id} waits to start.")
    else:
        message = f"Training run {run.id} is running. {read if types[at] == reads else ''}"
        writer.unknown(types[at], Reason.RUNNING, message.rstrip())
    write_waiting(writer, types[at + 1 :], Reason.WAITING, f"Comes after {types[at]}.")


def previous_version_serves(writer: ConditionWriter, types: Sequence[str], version: int) -> str:
    """Return Ready's message while a version of an earlier spec serves: what the next version waits for."""
    condition = writer.first_not_true(types)
    why = f": {condition.message}" if condition is not None and condition.message else "."
    return f"Version {version} serves; the declared spec has no version yet{why}"


def write_summary(writer: ConditionWriter, types: Sequence[str], phase: TrainingPhase) -> None:
    """Write Reconciling and Stalled for a training phase, from the conditions ``types`` written before.

    A run that waits for a node or a quota is reconciling, as is a pod that waits for a node. A run that needs
    another spec or other data is stalled.
    """
    condition = writer.first_not_true(types)
    if phase is TrainingPhase.SUSPENDED:
        writer.at_rest(Reason.SUSPENDED)
    elif condition is None:
        writer.at_rest()
    elif phase in (TrainingPhase.FAILED, TrainingPhase.GATE_FAILED):
        writer.stalled(condition.reason, condition.message)
    else:
        writer.reconciling(condition.reason, condition.message)


def _write_problem(
    writer: ConditionWriter, types: Sequence[str], stages: Mapping[str, str], at: int, problem: PodProblem
) -> None:
    """Write a pod problem into the condition that was reached, and all up to training."""
    last = max(at, types.index(stages["training"]))
    for type_ in types[at : last + 1]:
        writer.false(type_, problem.reason, problem.message)
    write_waiting(writer, types[last + 1 :], Reason.WAITING, f"Comes after {types[last]}.")


def _condition_at(
    progress: RunProgress | None,
    failure: RunFailure | None,
    types: Sequence[str],
    stages: Mapping[str, str],
) -> str:
    # Invalid rows are a problem of the corpus, whichever stage finds them.
    if failure is not None and failure.reason.startswith(("Corpus", "Row", "Field")):
        return stages.get("corpus", types[0])
    # A run without progress has finished nothing, not even reading its corpus.
    return stages.get(progress.stage, types[0]) if progress is not None else types[0]


def is_served(view: AdapterView | None) -> bool:
    """Return whether a runtime serves any published version."""
    return view is not None and view.current is not None and bool(view.loaded_on or view.earlier)


def is_settled(view: AdapterView | None) -> bool:
    """Return whether the current version is loaded and no earlier one is served any more."""
    return view is not None and bool(view.loaded_on) and not view.earlier


def serving_phase_name(view: AdapterView | None) -> str | None:
    """Return the phase of a TaskAdapter whose current version is not loaded; None if it is."""
    if view is None or view.loaded_on:
        return None
    if is_served(view):
        return Phase.DEGRADED.value if view.load_error else Phase.UPDATING.value
    if not view.scheduled_on:
        return Phase.NO_RUNTIME.value
    return Phase.FAILED.value if _is_lasting(view.load_error) else Phase.LOADING.value


def write_serving(
    writer: ConditionWriter, view: AdapterView | None, up_to_date: bool, types: Sequence[str]
) -> bool:
    """Write Scheduled and Loaded, and Ready if it is True; return whether it is.

    Scheduled and Loaded are about the declared spec's version. Ready is True while any version is served,
    whatever becomes of the next one. ``types`` are the conditions before Ready: its message names the one
    that the next version waits for.
    """
    if view is None or view.current is None or not up_to_date:
        writer.unknown(TaskAdapterCondition.SCHEDULED, Reason.WAITING, "Comes after Published.")
        serving = _describe_versions(_served_versions(view)) if view is not None else []
        message = " ".join(["Comes after Scheduled.", *serving])
        writer.unknown(TaskAdapterCondition.LOADED, Reason.WAITING, message)
    else:
        _write_scheduled(writer, view)
        _write_loaded(writer, view, view.current)
    if view is None or view.current is None or not is_served(view):
        return False
    if up_to_date:
        _write_ready(writer, view, view.current)
    else:
        message = previous_version_serves(writer, types, max(one.version for one in _served_versions(view)))
        writer.true(TaskAdapterCondition.READY, Reason.PREVIOUS_VERSION, message)
    return True


def write_serving_summary(writer: ConditionWriter, view: AdapterView) -> None:
    """Write Reconciling and Stalled of a TaskAdapter whose spec is published.

    It is in effect when every scheduled runtime has loaded it and none serves an earlier version any more.
    Replicas without a runtime do not count while another one serves.
    """
    missing = [runtime for runtime in view.scheduled_on if runtime not in view.loaded_on]
    if not view.scheduled_on and not view.loaded_on:
        writer.reconciling(Reason.NO_RUNTIME, _no_runtime(view))
    elif missing and view.load_error is not None:
        write = writer.stalled if _is_lasting(view.load_error) else writer.reconciling
        write(view.load_error.reason, view.load_error.message)
    elif missing or view.earlier:
        message = " ".join([*_describe_missing(view), *_describe_versions(view.earlier)])
        writer.reconciling(Reason.LOADING, message)
    else:
        writer.at_rest()


def _write_scheduled(writer: ConditionWriter, view: AdapterView) -> None:
    if not view.scheduled_on:
        writer.false(TaskAdapterCondition.SCHEDULED, Reason.NO_RUNTIME, _no_runtime(view))
        return
    lacking = view.record.replicas - len(view.scheduled_on)
    more = f" {lacking} of {view.record.replicas} replicas wait for a runtime." if lacking > 0 else ""
    writer.true(
        TaskAdapterCondition.SCHEDULED, Reason.PLACED, f"Placed on {', '.join(view.scheduled_on)}.{more}"
    )


def _no_runtime(view: AdapterView) -> str:
    if view.runtimes == 0:
        return "No runtime is running; start one (runtime pools may be scaled to zero)."
    return "No runtime has room for it; start one, or give the present ones more room."


def _is_lasting(load_error: LoadError | None) -> bool:
    """Return whether a load failed for a reason that no retry resolves."""
    return load_error is not None and load_error.reason not in PASSING_LOAD_FAILURES


def _write_loaded(writer: ConditionWriter, view: AdapterView, current: AdapterVersionView) -> None:
    """Write Loaded, which is about the current version; its message also names earlier ones that serve."""
    meanwhile = _describe_versions(view.earlier)
    if view.loaded_on:
        sentences = [
            f"Version {current.version} is loaded by {', '.join(view.loaded_on)}.",
            *_describe_missing(view),
            *meanwhile,
        ]
        writer.true(TaskAdapterCondition.LOADED, Reason.LOADED, " ".join(sentences))
    elif view.load_error:
        message = " ".join([view.load_error.message, *meanwhile])
        writer.false(TaskAdapterCondition.LOADED, view.load_error.reason, message)
    elif view.scheduled_on:
        fetching = f"Version {current.version} is being fetched by {', '.join(view.scheduled_on)}."
        writer.unknown(TaskAdapterCondition.LOADED, Reason.LOADING, " ".join([fetching, *meanwhile]))
    else:
        writer.unknown(
            TaskAdapterCondition.LOADED, Reason.WAITING, " ".join(["Comes after Scheduled.", *meanwhile])
        )


def _write_ready(writer: ConditionWriter, view: AdapterView, current: AdapterVersionView) -> None:
    if view.loaded_on:
        writer.true(TaskAdapterCondition.READY, Reason.SERVING, f"Version {current.version} serves.")
        return
    newest = max(earlier.version for earlier in view.earlier)
    message = f"Version {newest} serves until version {current.version} is loaded."
    writer.true(TaskAdapterCondition.READY, Reason.PREVIOUS_VERSION, message)


def _served_versions(view: AdapterView) -> list[EarlierVersion]:
    """Return all versions that runtimes serve, the current one included."""
    if view.current is None:
        return list(view.earlier)
    current = [EarlierVersion(runtime=name, version=view.current.version) for name in view.loaded_on]
    return [*current, *view.earlier]


def _describe_missing(view: AdapterView) -> list[str]:
    """Return a sentence about scheduled runtimes without the current version or table, if there are any."""
    missing = [runtime for runtime in view.scheduled_on if runtime not in view.loaded_on]
    error = view.load_error
    if not missing:
        on_earlier = "A runtime serves it on an earlier table of its Domain"
        return [f"{on_earlier}: {error.reason}: {error.message}"] if error else []
    why = f": {error.reason}: {error.message}" if error else "."
    return [f"It is not yet loaded by {', '.join(missing)}{why}"]


def _describe_versions(earlier: Sequence[EarlierVersion]) -> list[str]:
    """Return a sentence for each earlier version that is served, the newest first."""
    runtimes: dict[int, list[str]] = {}
    for one in earlier:
        runtimes.setdefault(one.version, []).append(one.runtime)
    return [
        f"Version {version} serves on {', '.join(runtimes[version])}."
        for version in sorted(runtimes, reverse=True)
    ]


_PHASES = {
    TrainingPhase.SUSPENDED: (Phase.SUSPENDED, Phase.SUSPENDED),
    TrainingPhase.STARTING: (Phase.PENDING, Phase.UPDATING),
    TrainingPhase.QUEUED: (Phase.PENDING, Phase.UPDATING),
    TrainingPhase.RUNNING: (Phase.TRAINING, Phase.UPDATING),
    TrainingPhase.RETRYING: (Phase.RETRYING, Phase.UPDATING),
    TrainingPhase.FAILED: (Phase.FAILED, Phase.DEGRADED),
    TrainingPhase.GATE_FAILED: (Phase.FAILED, Phase.DEGRADED),
    TrainingPhase.UP_TO_DATE: (Phase.READY, Phase.READY),
}
"""``status.phase`` while no version is served, and while one is."""


def training_phase_name(phase: TrainingPhase, *, serves: bool) -> str:
    """Return ``status.phase`` for a training phase; ``serves`` says whether any version is served.

    ``Updating`` and ``Degraded``: an older version is served while the declared one is trained, or cannot be.
    """
    return _PHASES[phase][serves].value
