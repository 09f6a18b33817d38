"""The plan of a TaskAdapter."""

from dataclasses import replace

from hmi_api.internal.catalog import AdapterRecord, AdapterVersionView, AdapterView, DomainVersionView
from hmi_api.internal.runs import AdapterRunSpec
from hmi_api.names import FINALIZER, Digest
from hmi_api.resources.common import ArtifactStatus
from hmi_api.resources.conditions import SUMMARIES, Phase, TaskAdapterCondition
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import adapter_run_digest
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus
from hmi_operator.planning.actions import Action, AddFinalizer, Declare, Plan
from hmi_operator.planning.conditions import (
    ConditionWriter,
    data_read,
    data_text,
    is_served,
    is_settled,
    progress_text,
    serving_phase_name,
    training_phase_name,
    write_serving,
    write_serving_summary,
    write_stages,
    write_summary,
    write_waiting,
)
from hmi_operator.planning.deletion import plan_deletion
from hmi_operator.planning.observed import DomainDependency, ObservedAdapter
from hmi_operator.planning.revocation import ending_of, restoration
from hmi_operator.planning.training import (
    POLL_SECONDS,
    Decision,
    TrainingPhase,
    decide_training,
)
from hmi_operator.planning.validation import Rejection, validate_adapter, write_rejection

_TRAINING = [
    TaskAdapterCondition.TRAINED.value,
    TaskAdapterCondition.GATE_PASSED.value,
    TaskAdapterCondition.PUBLISHED.value,
]
_STAGES = {
    "corpus": TaskAdapterCondition.TRAINED.value,
    "teaching": TaskAdapterCondition.TRAINED.value,
    "training": TaskAdapterCondition.TRAINED.value,
    "settling": TaskAdapterCondition.TRAINED.value,
    "evaluation": TaskAdapterCondition.GATE_PASSED.value,
    "publishing": TaskAdapterCondition.PUBLISHED.value,
}
_BEFORE_READY = [type_.value for type_ in TaskAdapterCondition if type_ not in SUMMARIES]


def plan_adapter(adapter: TaskAdapter, observed: ObservedAdapter) -> Plan[TaskAdapterStatus]:
    """Return the next status and the actions for a TaskAdapter. Pure: same arguments, same plan."""
    if adapter.metadata.deletion_timestamp is not None:
        return plan_deletion(adapter, adapter.status, observed.run, observed.now)
    if FINALIZER not in adapter.metadata.finalizers:
        action = AddFinalizer(why="what is created for the TaskAdapter must be deleted with it")
        return Plan(adapter.status, (action,), requeue_after=0.0)
    observed = _without_namesake(adapter, observed)
    writer = ConditionWriter(
        adapter.status.conditions, generation=adapter.metadata.generation, now=observed.now
    )
    ending = ending_of(adapter, observed)
    if ending is not None:
        plan = _plan_rejected(adapter, observed, writer, ending.rejection)
        return replace(plan, actions=ending.actions, requeue_after=ending.requeue_after)
    rejection = validate_adapter(adapter, observed)
    if rejection is not None:
        return _plan_rejected(adapter, observed, writer, rejection)
    writer.true(TaskAdapterCondition.ACCEPTED, Reason.ACCEPTED)
    declare = (*restoration(observed.view), *_declare(adapter, observed))
    dependency = observed.domain
    if dependency.domain is None or dependency.current is None:
        return _plan_without_domain(adapter, observed, writer, declare)
    current = dependency.current
    writer.true(
        TaskAdapterCondition.DOMAIN_READY,
        Reason.DOMAIN_READY,
        f"Domain {dependency.key} has version {current.version}.",
    )
    writer.true(TaskAdapterCondition.QUOTA_AVAILABLE, Reason.NOT_LIMITED, "No quota is set.")
    decision = _decide_training(adapter, observed, current)
    return _plan_training(adapter, observed, writer, declare, decision)


def _without_namesake(adapter: TaskAdapter, observed: ObservedAdapter) -> ObservedAdapter:
    """Leave out the catalog's view of an earlier object of this name, unless this object can take it over."""
    record = observed.view.record if observed.view else None
    if record is None or record.uid == adapter.metadata.uid:
        return observed
    kept = (record.tenant, record.domain, record.task_type)
    same = kept == (observed.tenant, adapter.domain_key, adapter.spec.task.type)
    return observed if same else replace(observed, view=None)


def _declare(adapter: TaskAdapter, observed: ObservedAdapter) -> tuple[Action, ...]:
    record = AdapterRecord(
        uid=adapter.metadata.uid,
        tenant=observed.tenant,
        generation=adapter.metadata.generation,
        spec_digest=_digest(adapter, observed),
        domain=adapter.domain_key,
        task_type=adapter.spec.task.type,
        replicas=adapter.spec.serving.replicas,
        pinned=adapter.spec.serving.pinned,
    )
    if observed.view is not None and observed.view.record == record:
        return ()
    return (Declare(record, why="the catalog's record differs"),)


def _decide_training(adapter: TaskAdapter, observed: ObservedAdapter, domain: DomainVersionView) -> Decision:
    spec = AdapterRunSpec(
        namespace=adapter.metadata.namespace, name=adapter.metadata.name, spec=adapter.spec, domain=domain
    )
    return decide_training(adapter, observed, _digest(adapter, observed), spec)


def _digest(adapter: TaskAdapter, observed: ObservedAdapter) -> Digest:
    """Return the digest of what should be published; without the Domain's layers, of the spec alone."""
    domain = observed.domain.current
    return adapter_run_digest(
        adapter, domain.layers.digest if domain else None, domain.on_miss if domain else None
    )


def _plan_training(
    adapter: TaskAdapter,
    observed: ObservedAdapter,
    writer: ConditionWriter,
    declare: tuple[Action, ...],
    decision: Decision,
) -> Plan[TaskAdapterStatus]:
    current = observed.current
    up_to_date = decision.phase is TrainingPhase.UP_TO_DATE
    if up_to_date and current is not None:
        _write_published(adapter, writer, current)
    elif decision.phase is TrainingPhase.GATE_FAILED:
        _write_gate_failed(writer, decision, current)
    else:
        write_stages(writer, _TRAINING, _STAGES, decision)
    _write_serving(writer, observed.view, up_to_date)
    if up_to_date and observed.view is not None:
        write_serving_summary(writer, observed.view)
    else:
        write_summary(writer, _TRAINING, decision.phase)
    phase = training_phase_name(decision.phase, serves=is_served(observed.view))
    if up_to_date:
        phase = serving_phase_name(observed.view) or phase
    run = decision.run
    status = _status(adapter, observed, writer)
    measured = run.result.metrics if run and run.result and current is None else status.metrics
    status = status.model_copy(
        update={
            "phase": phase,
            "run_ref": run.id if run else None,
            "progress": progress_text(decision),
            "metrics": dict(measured),
            "data": data_read(decision, status.data),
        }
    )
    # Runtimes report what they loaded to the control plane only, so poll it.
    loading = POLL_SECONDS if current is not None and not is_settled(observed.view) else None
    waits = [wait for wait in (decision.requeue_after, loading) if wait is not None]
    return Plan(status, declare + decision.actions, min(waits, default=None))


def _write_published(adapter: TaskAdapter, writer: ConditionWriter, current: AdapterVersionView) -> None:
    writer.true(TaskAdapterCondition.TRAINED, Reason.SUCCEEDED, data_text(current.data))
    gate = adapter.spec.gate
    if gate is None:
        writer.true(TaskAdapterCondition.GATE_PASSED, Reason.NO_GATE, "No gate is declared.")
    else:
        value = current.metrics.get(gate.metric.value)
        measured = f"{gate.metric.value} {value:.4g}" if value is not None else gate.metric.value
        message = f"{measured} reached the minimum of {gate.minimum:g}."
        writer.true(TaskAdapterCondition.GATE_PASSED, Reason.GATE_PASSED, message)
    message = f"Version {current.version} is published."
    writer.true(TaskAdapterCondition.PUBLISHED, Reason.PUBLISHED, message)


def _write_gate_failed(
    writer: ConditionWriter, decision: Decision, current: AdapterVersionView | None
) -> None:
    writer.true(TaskAdapterCondition.TRAINED, Reason.SUCCEEDED, data_text(data_read(decision, ())))
    result = decision.run.result if decision.run else None
    found = result.gate_message if result and result.gate_message else "The gate's minimum was not reached."
    kept = f" Version {current.version} serves on." if current else ""
    message = f"{found}{kept} Improve the data or training, or lower spec.gate.minimum."
    writer.false(TaskAdapterCondition.GATE_PASSED, Reason.GATE_NOT_REACHED, message)
    writer.unknown(TaskAdapterCondition.PUBLISHED, Reason.WAITING, "Comes after GatePassed.")


def _write_serving(writer: ConditionWriter, view: AdapterView | None, up_to_date: bool) -> None:
    if not write_serving(writer, view, up_to_date, _BEFORE_READY):
        writer.not_ready(_BEFORE_READY)


def _plan_without_domain(
    adapter: TaskAdapter, observed: ObservedAdapter, writer: ConditionWriter, declare: tuple[Action, ...]
) -> Plan[TaskAdapterStatus]:
    reason, message = _why_no_domain(observed.domain)
    writer.false(TaskAdapterCondition.DOMAIN_READY, reason, message)
    writer.reconciling(reason, message)
    writer.true(TaskAdapterCondition.QUOTA_AVAILABLE, Reason.NOT_LIMITED, "No quota is set.")
    write_waiting(writer, _TRAINING, Reason.WAITING, "Comes after DomainReady.")
    _write_serving(writer, observed.view, up_to_date=False)
    phase = Phase.DEGRADED.value if is_served(observed.view) else Phase.WAITING.value
    return Plan(_status(adapter, observed, writer).model_copy(update={"phase": phase}), declare)


def _why_no_domain(dependency: DomainDependency) -> Rejection:
    if dependency.domain is None:
        return Reason.DOMAIN_NOT_FOUND, (
            f"There is no Domain {dependency.key}. Apply it, or correct spec.domainRef."
        )
    phase = dependency.domain.status.phase
    # Anyone who may write the Domain's status chose its phase: repeat it only if it is a known word.
    how = f"it is {phase}" if phase in set(Phase) else "see its conditions"
    return Reason.DOMAIN_NOT_READY, f"Domain {dependency.key} has no published version yet; {how}."


def _plan_rejected(
    adapter: TaskAdapter, observed: ObservedAdapter, writer: ConditionWriter, rejection: Rejection
) -> Plan[TaskAdapterStatus]:
    write_rejection(writer, rejection)
    before = [TaskAdapterCondition.DOMAIN_READY.value, TaskAdapterCondition.QUOTA_AVAILABLE.value]
    write_waiting(writer, [*before, *_TRAINING], Reason.WAITING, "Waits for the TaskAdapter to be accepted.")
    _write_serving(writer, observed.view, up_to_date=False)
    phase = Phase.DEGRADED.value if is_served(observed.view) else Phase.FAILED.value
    return Plan(_status(adapter, observed, writer).model_copy(update={"phase": phase}))


def _status(adapter: TaskAdapter, observed: ObservedAdapter, writer: ConditionWriter) -> TaskAdapterStatus:
    current = observed.current
    artifact = current.artifact if current else None
    return TaskAdapterStatus(
        observed_generation=adapter.metadata.generation,
        phase=adapter.status.phase,
        conditions=writer.written,
        version=current.version if current else None,
        artifact=ArtifactStatus(uri=artifact.uri, digest=artifact.digest, bytes=artifact.bytes)
        if artifact
        else None,
        metrics=dict(current.metrics) if current else {},
        data=list(current.data) if current else [],
        run_ref=adapter.status.run_ref,
        domain=_trained_on(adapter, observed, current),
        replicas=len(observed.view.loaded_on) if observed.view and current else None,
    )


def _trained_on(
    adapter: TaskAdapter, observed: ObservedAdapter, current: AdapterVersionView | None
) -> str | None:
    """Return the Domain and its version that the served adapter was trained on."""
    if current is None:
        return None
    domain = observed.domain.current
    if domain is not None and domain.layers.digest == current.layers_digest:
        return f"{adapter.spec.domain_ref.name}/{domain.version}"
    return adapter.status.domain
