"""The plan of a Domain."""

from dataclasses import replace

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import DomainRecord, DomainVersionView
from hmi_api.internal.runs import DomainRunSpec, RunCreate
from hmi_api.names import FINALIZER, Digest
from hmi_api.resources.common import ArtifactStatus
from hmi_api.resources.conditions import DomainCondition, Phase
from hmi_api.resources.domain import Domain, DomainSpec, DomainStatus
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import domain_run_digest
from hmi_operator.plan.conditions import ConditionWriter
from hmi_operator.plan.dependents import holds, withdrawals
from hmi_operator.plan.phases import phase_of
from hmi_operator.plan.refusal import Refusal, refuse_domain, write_refusal
from hmi_operator.plan.removal import plan_removal
from hmi_operator.plan.revocation import describe, still_served
from hmi_operator.plan.runs import Outlook, RunFacts, Standpoint, look
from hmi_operator.plan.stages import (
    data_read,
    data_text,
    previous_version_serves,
    progress_text,
    write_stages,
    write_summary,
    write_waiting,
)
from hmi_operator.plan.steps import AddFinalizer, DeclareDomain, Plan, Step
from hmi_operator.plan.world import DomainWorld

_WORK = [
    DomainCondition.CORPUS_READY.value,
    DomainCondition.TRAINED.value,
    DomainCondition.TABLE_BUILT.value,
    DomainCondition.PUBLISHED.value,
]
_STAGES = {
    "corpus": DomainCondition.CORPUS_READY.value,
    "training": DomainCondition.TRAINED.value,
    "table": DomainCondition.TABLE_BUILT.value,
    "evaluation": DomainCondition.TABLE_BUILT.value,
    "publishing": DomainCondition.PUBLISHED.value,
}


def plan_domain(domain: Domain, world: DomainWorld) -> Plan[DomainStatus]:
    """Return what to do about a Domain and what to say of it. Pure: same arguments, same plan."""
    if domain.metadata.deletion_timestamp is not None:
        return _removal(domain, world)
    if FINALIZER not in domain.metadata.finalizers:
        step = AddFinalizer("what is made for the Domain must be erased with it")
        return Plan(domain.status, (step,), requeue_after=0.0)
    world = _of_this_object(domain, world)
    writer = ConditionWriter(domain.status.conditions, generation=domain.metadata.generation, now=world.now)
    refusal = refuse_domain(domain, world)
    if refusal is not None:
        return _refused(domain, world, writer, refusal)
    told = still_served(world.dependents, world.surroundings)
    writer.true(DomainCondition.ACCEPTED, Reason.ACCEPTED, told)
    declare = _declare(domain, world)
    if world.parent is not None and world.parent.current is None:
        message = f"Waits for its parent {world.parent.key} to be published."
        return _blocked(domain, world, writer, declare, (Reason.PARENT_NOT_READY, message))
    outlook = _outlook(domain, world)
    return _at_work(domain, world, writer, declare, outlook)


def _removal(domain: Domain, world: DomainWorld) -> Plan[DomainStatus]:
    return plan_removal(
        domain,
        domain.status,
        world.run,
        world.now,
        dependents=tuple(
            describe(one, world.surroundings) for one in world.dependents if holds(domain, one, world.lineage)
        ),
        before=withdrawals(domain, world.dependents),
    )


def _of_this_object(domain: Domain, world: DomainWorld) -> DomainWorld:
    """Leave out what the catalog has of an earlier object of this name and cannot go over to this one."""
    record = world.view.record if world.view else None
    if record is None or record.uid == domain.metadata.uid:
        return world
    adopts = (record.tenant, record.base_uri) == (world.tenant, domain.spec.base_model.uri)
    return world if adopts else replace(world, view=None)


def _declare(domain: Domain, world: DomainWorld) -> tuple[Step, ...]:
    record = DomainRecord(
        uid=domain.metadata.uid,
        tenant=world.tenant,
        generation=domain.metadata.generation,
        spec_digest=_wanted(domain, world),
        base_uri=domain.spec.base_model.uri,
        parent=domain.parent_key,
    )
    if world.view is not None and world.view.record == record:
        return ()
    return (DeclareDomain(record, "the catalog does not have it as declared"),)


def _outlook(domain: Domain, world: DomainWorld) -> Outlook:
    parent = world.parent.current if world.parent else None
    digest = _wanted(domain, world)
    current = _current(world)

    def request(attempt: int) -> RunCreate:
        return RunCreate(
            uid=domain.metadata.uid,
            tenant=world.tenant,
            spec_digest=digest,
            attempt=attempt,
            spec=DomainRunSpec(
                namespace=domain.metadata.namespace,
                name=domain.metadata.name,
                spec=_spec_to_train(domain.spec, parent),
                parent=parent,
            ),
        )

    facts = RunFacts(
        wanted=digest,
        published=current.spec_digest if current else None,
        run=world.run,
        job=world.job,
        suspended=domain.spec.suspend,
        now=world.now,
        resources=domain.spec.resources,
    )
    return look(facts, request)


def _wanted(domain: Domain, world: DomainWorld) -> Digest:
    """Return the digest of what should be published; while a parent has no layers, of the spec alone."""
    parent = world.parent.current if world.parent else None
    return domain_run_digest(domain, parent.layers.digest if parent else None)


def _spec_to_train(spec: DomainSpec, parent: DomainVersionView | None) -> DomainSpec:
    """A child that names no split has its parent's: half of the layers may be another number."""
    if parent is None or spec.split is not None:
        return spec
    return spec.model_copy(update={"split": parent.split})


def _current(world: DomainWorld) -> DomainVersionView | None:
    return world.view.current if world.view else None


def _at_work(
    domain: Domain, world: DomainWorld, writer: ConditionWriter, declare: tuple[Step, ...], outlook: Outlook
) -> Plan[DomainStatus]:
    current = _current(world)
    up_to_date = outlook.standpoint is Standpoint.UP_TO_DATE
    if up_to_date and current is not None:
        for type_ in _WORK[:-1]:
            read = data_text(current.data) if type_ == DomainCondition.CORPUS_READY else ""
            writer.true(type_, Reason.SUCCEEDED, read)
        writer.true(DomainCondition.PUBLISHED, Reason.PUBLISHED, f"Version {current.version} is published.")
    else:
        write_stages(writer, _WORK, _STAGES, outlook)
    write_summary(writer, _WORK, outlook.standpoint)
    _write_ready(writer, current, up_to_date)
    run = outlook.run
    status = _status(domain, world, writer).model_copy(
        update={
            "phase": phase_of(outlook.standpoint, serves=current is not None),
            "run_ref": run.id if run else None,
            "progress": progress_text(outlook),
            "data": data_read(outlook, current.data if current else ()),
        }
    )
    return Plan(status, declare + outlook.steps, outlook.requeue_after)


def _blocked(
    domain: Domain, world: DomainWorld, writer: ConditionWriter, declare: tuple[Step, ...], why: Refusal
) -> Plan[DomainStatus]:
    write_waiting(writer, _WORK, *why)
    writer.reconciling(*why)
    current = _current(world)
    _write_ready(writer, current, up_to_date=False)
    phase = Phase.UPDATING.value if current else Phase.WAITING.value
    return Plan(_status(domain, world, writer).model_copy(update={"phase": phase}), declare)


def _refused(
    domain: Domain, world: DomainWorld, writer: ConditionWriter, refusal: Refusal
) -> Plan[DomainStatus]:
    write_refusal(writer, refusal)
    write_waiting(writer, _WORK, Reason.WAITING, "Waits for the Domain to be accepted.")
    current = _current(world)
    _write_ready(writer, current, up_to_date=False)
    phase = Phase.DEGRADED.value if current else Phase.FAILED.value
    return Plan(_status(domain, world, writer).model_copy(update={"phase": phase}))


def _write_ready(writer: ConditionWriter, current: DomainVersionView | None, up_to_date: bool) -> None:
    """Ready is True while any version is published: what serves goes on whatever becomes of the next."""
    if current is None:
        writer.not_ready([DomainCondition.ACCEPTED.value, *_WORK])
        return
    if up_to_date:
        writer.true(DomainCondition.READY, Reason.SERVING, f"Version {current.version} serves.")
        return
    message = previous_version_serves(writer, [DomainCondition.ACCEPTED.value, *_WORK], current.version)
    writer.true(DomainCondition.READY, Reason.PREVIOUS_VERSION, message)


def _status(domain: Domain, world: DomainWorld, writer: ConditionWriter) -> DomainStatus:
    current = _current(world)
    return DomainStatus(
        observed_generation=domain.metadata.generation,
        phase=domain.status.phase,
        conditions=writer.written,
        version=current.version if current else None,
        artifact=_artifact(current),
        metrics=dict(current.metrics) if current else {},
        data=list(current.data) if current else [],
        run_ref=domain.status.run_ref,
        progress=None,
        entries=current.entries if current else None,
        coverage=current.coverage if current else None,
    )


def _artifact(current: DomainVersionView | None) -> ArtifactStatus | None:
    if current is None:
        return None
    own: ArtifactRef = current.tables[0] if current.tables else current.layers
    return ArtifactStatus(uri=own.uri, digest=own.digest, bytes=own.bytes)
