"""The stages of a training run as conditions: done, under way, failed or not reached; and their summary."""

from collections.abc import Mapping, Sequence

from hmi_api.internal.runs import RunFailure, RunProgress
from hmi_api.resources.common import DataRead
from hmi_api.resources.reasons import Reason
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.planning.observed import PodProblem
from hmi_operator.planning.training import Decision, TrainingPhase


def progress_text(decision: Decision) -> str | None:
    """Return how far the run at work is, such as ``training 120/400``; None when none is at work."""
    progress = decision.run.progress if decision.run else None
    if progress is None or decision.phase not in (TrainingPhase.RUNNING, TrainingPhase.QUEUED):
        return None
    return f"{progress.stage} {progress.step}/{progress.total}"


def data_read(decision: Decision, published: Sequence[DataRead]) -> list[DataRead]:
    """Return what the run that the decision speaks of has read; without a run, what the published version
    has."""
    run = decision.run
    if run is None:
        return list(published)
    told = (run.result, run.failure, run.progress)
    return next((list(source.data) for source in told if source is not None and source.data), [])


def data_text(data: Sequence[DataRead]) -> str:
    """Return in words what was read, for a condition."""
    return " ".join(read.sentence() for read in data)


def write_waiting(writer: ConditionWriter, types: Sequence[str], reason: str, message: str) -> None:
    """Say of each type that it is not reached."""
    for type_ in types:
        writer.unknown(type_, reason, message)


def write_stages(
    writer: ConditionWriter, types: Sequence[str], stages: Mapping[str, str], decision: Decision
) -> None:
    """Write the conditions ``types``, in their order, of a run that has not published yet.

    ``stages`` maps a run's stage to the condition it works on; stages it does not know are the first's.
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
    """Return Ready's message while a version of an earlier spec serves: it says what the next waits for."""
    cause = writer.first_open(types)
    why = f": {cause.message}" if cause is not None and cause.message else "."
    return f"Version {version} serves; the declared spec has no version yet{why}"


def write_summary(writer: ConditionWriter, types: Sequence[str], phase: TrainingPhase) -> None:
    """Write Reconciling and Stalled for where training stands; ``types`` are the actions, written before.

    What a node or a quota keeps back is reconciling: it goes on by itself, as a pod does that no node takes.
    What only another spec or other data can mend is stalled.
    """
    cause = writer.first_open(types)
    if phase is TrainingPhase.SUSPENDED:
        writer.at_rest(Reason.SUSPENDED)
    elif cause is None:
        writer.at_rest()
    elif phase in (TrainingPhase.FAILED, TrainingPhase.GATE_FAILED):
        writer.stalled(cause.reason, cause.message)
    else:
        writer.reconciling(cause.reason, cause.message)


def _write_problem(
    writer: ConditionWriter, types: Sequence[str], stages: Mapping[str, str], at: int, problem: PodProblem
) -> None:
    """Say of the stage that was reached, and of all up to training, what keeps the process from running."""
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
    # What is wrong with the rows is the corpus's fault whenever it is found.
    if failure is not None and failure.reason.startswith(("Corpus", "Row", "Field")):
        return stages.get("corpus", types[0])
    # A run that never said how far it came has finished nothing, the reading of its corpus included.
    return stages.get(progress.stage, types[0]) if progress is not None else types[0]
