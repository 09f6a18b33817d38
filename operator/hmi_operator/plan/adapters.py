"""The plan of a TaskAdapter."""

from dataclasses import replace

from hmi_api.internal.catalog import AdapterRecord, AdapterVersionView, AdapterView, DomainVersionView
from hmi_api.internal.runs import AdapterRunSpec, RunCreate
from hmi_api.names import FINALIZER, Digest
from hmi_api.resources.common import ArtifactStatus
from hmi_api.resources.conditions import SUMMARIES, Phase, TaskAdapterCondition
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import adapter_run_digest
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus
from hmi_operator.plan.conditions import ConditionWriter
from hmi_operator.plan.phases import phase_of
from hmi_operator.plan.refusal import Refusal, refuse_adapter, write_refusal
from hmi_operator.plan.removal import plan_removal
from hmi_operator.plan.revocation import ending_of, restoration
from hmi_operator.plan.runs import POLL_SECONDS, Outlook, RunFacts, Standpoint, look
from hmi_operator.plan.serving import (
    is_served,
    is_settled,
    phase_of_serving,
    write_serving,
    write_serving_summary,
)
from hmi_operator.plan.stages import (
    data_read,
    data_text,
    progress_text,
    write_stages,
    write_summary,
    write_waiting,
)
from hmi_operator.plan.steps import AddFinalizer, DeclareAdapter, Plan, Step
from hmi_operator.plan.world import AdapterWorld, Standing

_WORK = [
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
_STEPS = [type_.value for type_ in TaskAdapterCondition if type_ not in SUMMARIES]


def plan_adapter(adapter: TaskAdapter, world: AdapterWorld) -> Plan[TaskAdapterStatus]:
    """Return what to do about a TaskAdapter and what to say of it. Pure: same arguments, same plan."""
    if adapter.metadata.deletion_timestamp is not None:
        return plan_removal(adapter, adapter.status, world.run, world.now)
    if FINALIZER not in adapter.metadata.finalizers:
        step = AddFinalizer("what is made for the TaskAdapter must be erased with it")
        return Plan(adapter.status, (step,), requeue_after=0.0)
    world = _of_this_object(adapter, world)
    writer = ConditionWriter(adapter.status.conditions, generation=adapter.metadata.generation, now=world.now)
    ending = ending_of(adapter, world)
    if ending is not None:
        plan = _refused(adapter, world, writer, ending.refusal)
        return replace(plan, steps=ending.steps, requeue_after=ending.requeue_after)
    refusal = refuse_adapter(adapter, world)
    if refusal is not None:
        return _refused(adapter, world, writer, refusal)
    writer.true(TaskAdapterCondition.ACCEPTED, Reason.ACCEPTED)
    declare = (*restoration(world.view), *_declare(adapter, world))
    standing = world.domain
    if standing.domain is None or standing.current is None:
        return _without_domain(adapter, world, writer, declare)
    current = standing.current
    writer.true(
        TaskAdapterCondition.DOMAIN_READY,
        Reason.DOMAIN_READY,
        f"Domain {standing.key} has version {current.version}.",
    )
    writer.true(TaskAdapterCondition.QUOTA_AVAILABLE, Reason.NOT_LIMITED, "No quota is set.")
    outlook = _outlook(adapter, world, current)
    return _at_work(adapter, world, writer, declare, outlook)


def _of_this_object(adapter: TaskAdapter, world: AdapterWorld) -> AdapterWorld:
    """Leave out what the catalog has of an earlier object of this name and cannot go over to this one."""
    record = world.view.record if world.view else None
    if record is None or record.uid == adapter.metadata.uid:
        return world
    kept = (record.tenant, record.domain, record.task_type)
    adopts = kept == (world.tenant, adapter.domain_key, adapter.spec.task.type)
    return world if adopts else replace(world, view=None)


def _declare(adapter: TaskAdapter, world: AdapterWorld) -> tuple[Step, ...]:
    record = AdapterRecord(
        uid=adapter.metadata.uid,
        tenant=world.tenant,
        generation=adapter.metadata.generation,
        spec_digest=_wanted(adapter, world),
        domain=adapter.domain_key,
        task_type=adapter.spec.task.type,
        replicas=adapter.spec.serving.replicas,
        pinned=adapter.spec.serving.pinned,
    )
    if world.view is not None and world.view.record == record:
        return ()
    return (DeclareAdapter(record, "the catalog does not have it as declared"),)


def _outlook(adapter: TaskAdapter, world: AdapterWorld, domain: DomainVersionView) -> Outlook:
    digest = _wanted(adapter, world)
    current = _current(world)

    def request(attempt: int) -> RunCreate:
        return RunCreate(
            uid=adapter.metadata.uid,
            tenant=world.tenant,
            spec_digest=digest,
            attempt=attempt,
            spec=AdapterRunSpec(
                namespace=adapter.metadata.namespace,
                name=adapter.metadata.name,
                spec=adapter.spec,
                domain=domain,
            ),
        )

    facts = RunFacts(
        wanted=digest,
        published=current.spec_digest if current else None,
        run=world.run,
        job=world.job,
        suspended=adapter.spec.suspend,
        now=world.now,
        resources=adapter.spec.resources,
    )
    return look(facts, request)


def _wanted(adapter: TaskAdapter, world: AdapterWorld) -> Digest:
    """Return the digest of what should be published; while the Domain has no layers, of the spec alone."""
    domain = world.domain.current
    return adapter_run_digest(
        adapter, domain.layers.digest if domain else None, domain.on_miss if domain else None
    )


def _at_work(
    adapter: TaskAdapter,
    world: AdapterWorld,
    writer: ConditionWriter,
    declare: tuple[Step, ...],
    outlook: Outlook,
) -> Plan[TaskAdapterStatus]:
    current = _current(world)
    up_to_date = outlook.standpoint is Standpoint.UP_TO_DATE
    if up_to_date and current is not None:
        _write_published(adapter, writer, current)
    elif outlook.standpoint is Standpoint.GATE_FAILED:
        _write_gate_failed(writer, outlook, current)
    else:
        write_stages(writer, _WORK, _STAGES, outlook)
    _write_serving(writer, world.view, up_to_date)
    if up_to_date and world.view is not None:
        write_serving_summary(writer, world.view)
    else:
        write_summary(writer, _WORK, outlook.standpoint)
    phase = phase_of(outlook.standpoint, serves=is_served(world.view))
    if up_to_date:
        phase = phase_of_serving(world.view) or phase
    run = outlook.run
    status = _status(adapter, world, writer)
    measured = run.result.metrics if run and run.result and current is None else status.metrics
    status = status.model_copy(
        update={
            "phase": phase,
            "run_ref": run.id if run else None,
            "progress": progress_text(outlook),
            "metrics": dict(measured),
            "data": data_read(outlook, status.data),
        }
    )
    # Runtimes report what they have loaded to the control plane alone, so that is asked again.
    loading = POLL_SECONDS if current is not None and not is_settled(world.view) else None
    waits = [wait for wait in (outlook.requeue_after, loading) if wait is not None]
    return Plan(status, declare + outlook.steps, min(waits, default=None))


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


def _write_gate_failed(writer: ConditionWriter, outlook: Outlook, current: AdapterVersionView | None) -> None:
    writer.true(TaskAdapterCondition.TRAINED, Reason.SUCCEEDED, data_text(data_read(outlook, ())))
    result = outlook.run.result if outlook.run else None
    found = result.gate_message if result and result.gate_message else "The gate's minimum was not reached."
    kept = f" Version {current.version} serves on." if current else ""
    message = f"{found}{kept} Improve the data or training, or lower spec.gate.minimum."
    writer.false(TaskAdapterCondition.GATE_PASSED, Reason.GATE_NOT_REACHED, message)
    writer.unknown(TaskAdapterCondition.PUBLISHED, Reason.WAITING, "Comes after GatePassed.")


def _write_serving(writer: ConditionWriter, view: AdapterView | None, up_to_date: bool) -> None:
    if not write_serving(writer, view, up_to_date, _STEPS):
        writer.not_ready(_STEPS)


def _without_domain(
    adapter: TaskAdapter, world: AdapterWorld, writer: ConditionWriter, declare: tuple[Step, ...]
) -> Plan[TaskAdapterStatus]:
    reason, message = _why_no_domain(world.domain)
    writer.false(TaskAdapterCondition.DOMAIN_READY, reason, message)
    writer.reconciling(reason, message)
    writer.true(TaskAdapterCondition.QUOTA_AVAILABLE, Reason.NOT_LIMITED, "No quota is set.")
    write_waiting(writer, _WORK, Reason.WAITING, "Comes after DomainReady.")
    _write_serving(writer, world.view, up_to_date=False)
    phase = Phase.DEGRADED.value if is_served(world.view) else Phase.WAITING.value
    return Plan(_status(adapter, world, writer).model_copy(update={"phase": phase}), declare)


def _why_no_domain(standing: Standing) -> Refusal:
    if standing.domain is None:
        return Reason.DOMAIN_NOT_FOUND, (
            f"There is no Domain {standing.key}. Apply it, or correct spec.domainRef."
        )
    phase = standing.domain.status.phase
    # A status says what whoever may write it likes: of another's, no more than a known word is told on.
    how = f"it is {phase}" if phase in set(Phase) else "see its conditions"
    return Reason.DOMAIN_NOT_READY, f"Domain {standing.key} has no published version yet; {how}."


def _refused(
    adapter: TaskAdapter, world: AdapterWorld, writer: ConditionWriter, refusal: Refusal
) -> Plan[TaskAdapterStatus]:
    write_refusal(writer, refusal)
    waiting = [TaskAdapterCondition.DOMAIN_READY.value, TaskAdapterCondition.QUOTA_AVAILABLE.value, *_WORK]
    write_waiting(writer, waiting, Reason.WAITING, "Waits for the TaskAdapter to be accepted.")
    _write_serving(writer, world.view, up_to_date=False)
    phase = Phase.DEGRADED.value if is_served(world.view) else Phase.FAILED.value
    return Plan(_status(adapter, world, writer).model_copy(update={"phase": phase}))


def _current(world: AdapterWorld) -> AdapterVersionView | None:
    return world.view.current if world.view else None


def _status(adapter: TaskAdapter, world: AdapterWorld, writer: ConditionWriter) -> TaskAdapterStatus:
    current = _current(world)
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
        domain=_stands_on(adapter, world, current),
        replicas=len(world.view.loaded_on) if world.view and current else None,
    )


def _stands_on(adapter: TaskAdapter, world: AdapterWorld, current: AdapterVersionView | None) -> str | None:
    """Return the Domain and the version whose layers the served adapter was trained on."""
    if current is None:
        return None
    domain = world.domain.current
    if domain is not None and domain.layers.digest == current.layers_digest:
        return f"{adapter.spec.domain_ref.name}/{domain.version}"
    return adapter.status.domain
