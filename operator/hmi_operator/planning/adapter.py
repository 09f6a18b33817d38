"""The plan of a TaskAdapter."""

from dataclasses import replace

from hmi_api.internal.catalog import AdapterRecord, AdapterVersionView
from hmi_api.internal.runs import AdapterRunSpec
from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import SUMMARIES, Phase, TaskAdapterCondition
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import adapter_run_digest
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus
from hmi_operator.planning.actions import Action, AddFinalizer, Declare, Plan
from hmi_operator.planning.conditions import (
    ConditionWriter,
    common_status,
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
    return _AdapterPlanner(adapter, _without_namesake(adapter, observed)).plan()


def _without_namesake(adapter: TaskAdapter, observed: ObservedAdapter) -> ObservedAdapter:
    """Leave out the catalog's view of an earlier object of this name, unless this object can take it over."""
    record = observed.view.record if observed.view else None
    if record is None or record.uid == adapter.metadata.uid:
        return observed
    kept = (record.tenant, record.domain, record.task_type)
    same = kept == (observed.tenant, adapter.domain_key, adapter.spec.task.type)
    return observed if same else replace(observed, view=None)


class _AdapterPlanner:
    """Plans a TaskAdapter that has the finalizer and is not being deleted."""

    def __init__(self, adapter: TaskAdapter, observed: ObservedAdapter) -> None:
        self._adapter = adapter
        self._observed = observed
        self._view = observed.view
        self._current = observed.current
        self._writer = ConditionWriter.of(adapter, observed.now)
        domain = observed.domain.current
        self._digest = adapter_run_digest(
            adapter, domain.layers.digest if domain else None, domain.on_miss if domain else None
        )
        """Of what should be published; without the Domain's layers, of the spec alone."""

    def plan(self) -> Plan[TaskAdapterStatus]:
        ending = ending_of(self._adapter, self._observed)
        if ending is not None:
            plan = self._plan_rejected(ending.rejection)
            return replace(plan, actions=ending.actions, requeue_after=ending.requeue_after)
        rejection = validate_adapter(self._adapter, self._observed)
        if rejection is not None:
            return self._plan_rejected(rejection)
        self._writer.true(TaskAdapterCondition.ACCEPTED, Reason.ACCEPTED)
        declare = (*restoration(self._view), *self._declare())
        dependency = self._observed.domain
        current = dependency.current
        if dependency.domain is None or current is None:
            return self._plan_without_domain(declare)
        self._writer.true(
            TaskAdapterCondition.DOMAIN_READY,
            Reason.DOMAIN_READY,
            f"Domain {dependency.key} has version {current.version}.",
        )
        self._writer.true(TaskAdapterCondition.QUOTA_AVAILABLE, Reason.NOT_LIMITED, "No quota is set.")
        metadata = self._adapter.metadata
        spec = AdapterRunSpec(
            namespace=metadata.namespace, name=metadata.name, spec=self._adapter.spec, domain=current
        )
        return self._plan_training(
            declare, decide_training(self._adapter, self._observed, self._digest, spec)
        )

    def _declare(self) -> tuple[Action, ...]:
        spec = self._adapter.spec
        record = AdapterRecord(
            uid=self._adapter.metadata.uid,
            tenant=self._observed.tenant,
            generation=self._adapter.metadata.generation,
            spec_digest=self._digest,
            domain=self._adapter.domain_key,
            task_type=spec.task.type,
            replicas=spec.serving.replicas,
            pinned=spec.serving.pinned,
        )
        if self._view is not None and self._view.record == record:
            return ()
        return (Declare(record, why="the catalog's record differs"),)

    def _plan_training(self, declare: tuple[Action, ...], decision: Decision) -> Plan[TaskAdapterStatus]:
        writer, view, current = self._writer, self._view, self._current
        up_to_date = decision.phase is TrainingPhase.UP_TO_DATE
        if up_to_date and current is not None:
            self._write_published(current)
        elif decision.phase is TrainingPhase.GATE_FAILED:
            self._write_gate_failed(decision)
        else:
            write_stages(writer, _TRAINING, _STAGES, decision)
        self._write_serving(up_to_date)
        if up_to_date and view is not None:
            write_serving_summary(writer, view)
        else:
            write_summary(writer, _TRAINING, decision.phase)
        phase = training_phase_name(decision.phase, serves=is_served(view))
        if up_to_date:
            phase = serving_phase_name(view) or phase
        run = decision.run
        status = self._status(phase)
        measured = run.result.metrics if run and run.result and current is None else status.metrics
        status = status.model_copy(
            update={
                "run_ref": run.id if run else None,
                "progress": progress_text(decision),
                "metrics": dict(measured),
                "data": data_read(decision, status.data),
            }
        )
        # Runtimes report what they loaded to the control plane only, so poll it.
        loading = POLL_SECONDS if current is not None and not is_settled(view) else None
        waits = [wait for wait in (decision.requeue_after, loading) if wait is not None]
        return Plan(status, declare + decision.actions, min(waits, default=None))

    def _plan_without_domain(self, declare: tuple[Action, ...]) -> Plan[TaskAdapterStatus]:
        writer = self._writer
        reason, message = _why_no_domain(self._observed.domain)
        writer.false(TaskAdapterCondition.DOMAIN_READY, reason, message)
        writer.reconciling(reason, message)
        writer.true(TaskAdapterCondition.QUOTA_AVAILABLE, Reason.NOT_LIMITED, "No quota is set.")
        write_waiting(writer, _TRAINING, Reason.WAITING, "Comes after DomainReady.")
        self._write_serving(up_to_date=False)
        phase = Phase.DEGRADED if is_served(self._view) else Phase.WAITING
        return Plan(self._status(phase.value), declare)

    def _plan_rejected(self, rejection: Rejection) -> Plan[TaskAdapterStatus]:
        write_rejection(self._writer, rejection)
        before = [TaskAdapterCondition.DOMAIN_READY.value, TaskAdapterCondition.QUOTA_AVAILABLE.value]
        message = "Waits for the TaskAdapter to be accepted."
        write_waiting(self._writer, [*before, *_TRAINING], Reason.WAITING, message)
        self._write_serving(up_to_date=False)
        phase = Phase.DEGRADED if is_served(self._view) else Phase.FAILED
        return Plan(self._status(phase.value))

    def _write_published(self, current: AdapterVersionView) -> None:
        writer, gate = self._writer, self._adapter.spec.gate
        writer.true(TaskAdapterCondition.TRAINED, Reason.SUCCEEDED, data_text(current.data))
        if gate is None:
            writer.true(TaskAdapterCondition.GATE_PASSED, Reason.NO_GATE, "No gate is declared.")
        else:
            value = current.metrics.get(gate.metric.value)
            measured = f"{gate.metric.value} {value:.4g}" if value is not None else gate.metric.value
            message = f"{measured} reached the minimum of {gate.minimum:g}."
            writer.true(TaskAdapterCondition.GATE_PASSED, Reason.GATE_PASSED, message)
        message = f"Version {current.version} is published."
        writer.true(TaskAdapterCondition.PUBLISHED, Reason.PUBLISHED, message)

    def _write_gate_failed(self, decision: Decision) -> None:
        writer = self._writer
        writer.true(TaskAdapterCondition.TRAINED, Reason.SUCCEEDED, data_text(data_read(decision, ())))
        result = decision.run.result if decision.run else None
        found = (
            result.gate_message if result and result.gate_message else "The gate's minimum was not reached."
        )
        kept = f" Version {self._current.version} serves on." if self._current else ""
        message = f"{found}{kept} Improve the data or training, or lower spec.gate.minimum."
        writer.false(TaskAdapterCondition.GATE_PASSED, Reason.GATE_NOT_REACHED, message)
        writer.unknown(TaskAdapterCondition.PUBLISHED, Reason.WAITING, "Comes after GatePassed.")

    def _write_serving(self, up_to_date: bool) -> None:
        if not write_serving(self._writer, self._view, up_to_date, _BEFORE_READY):
            self._writer.not_ready(_BEFORE_READY)

    def _status(self, phase: str) -> TaskAdapterStatus:
        current = self._current
        artifact = current.artifact if current else None
        return TaskAdapterStatus(
            **common_status(self._adapter, self._observed, self._writer, phase, artifact),
            domain=self._trained_on(),
            replicas=len(self._view.loaded_on) if self._view and current else None,
        )

    def _trained_on(self) -> str | None:
        """Return the Domain and its version that the served adapter was trained on."""
        if self._current is None:
            return None
        domain = self._observed.domain.current
        if domain is not None and domain.layers.digest == self._current.layers_digest:
            return f"{self._adapter.spec.domain_ref.name}/{domain.version}"
        return self._adapter.status.domain


def _why_no_domain(dependency: DomainDependency) -> Rejection:
    if dependency.domain is None:
        return Reason.DOMAIN_NOT_FOUND, (
            f"There is no Domain {dependency.key}. Apply it, or correct spec.domainRef."
        )
    phase = dependency.domain.status.phase
    # Anyone who may write the Domain's status chose its phase: repeat it only if it is a known word.
    how = f"it is {phase}" if phase in set(Phase) else "see its conditions"
    return Reason.DOMAIN_NOT_READY, f"Domain {dependency.key} has no published version yet; {how}."
