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
from hmi_operator.planning.actions import Action, AddFinalizer, DeclareDomain, Plan
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.planning.deletion import plan_deletion
from hmi_operator.planning.dependents import holds, withdrawals
from hmi_operator.planning.observed import ObservedDomain
from hmi_operator.planning.phases import phase_of
from hmi_operator.planning.revocation import describe, still_served
from hmi_operator.planning.stages import (
    data_read,
    data_text,
    previous_version_serves,
    progress_text,
    write_stages,
    write_summary,
    write_waiting,
)
from hmi_operator.planning.training import Decision, TrainingPhase, TrainingState, decide_training
from hmi_operator.planning.validation import Rejection, validate_domain, write_rejection

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


def plan_domain(domain: Domain, observed: ObservedDomain) -> Plan[DomainStatus]:
    """Return what to do about a Domain and what to say of it. Pure: same arguments, same plan."""
    if domain.metadata.deletion_timestamp is not None:
        return _removal(domain, observed)
    if FINALIZER not in domain.metadata.finalizers:
        action = AddFinalizer("what is made for the Domain must be erased with it")
        return Plan(domain.status, (action,), requeue_after=0.0)
    observed = _of_this_object(domain, observed)
    writer = ConditionWriter(
        domain.status.conditions, generation=domain.metadata.generation, now=observed.now
    )
    rejection = validate_domain(domain, observed)
    if rejection is not None:
        return _refused(domain, observed, writer, rejection)
    told = still_served(observed.dependents, observed.environment)
    writer.true(DomainCondition.ACCEPTED, Reason.ACCEPTED, told)
    declare = _declare(domain, observed)
    if observed.parent is not None and observed.parent.current is None:
        message = f"Waits for its parent {observed.parent.key} to be published."
        return _blocked(domain, observed, writer, declare, (Reason.PARENT_NOT_READY, message))
    decision = _training_decision(domain, observed)
    return _at_work(domain, observed, writer, declare, decision)


def _removal(domain: Domain, observed: ObservedDomain) -> Plan[DomainStatus]:
    return plan_deletion(
        domain,
        domain.status,
        observed.run,
        observed.now,
        dependents=tuple(
            describe(one, observed.environment)
            for one in observed.dependents
            if holds(domain, one, observed.lineage)
        ),
        before=withdrawals(domain, observed.dependents),
    )


def _of_this_object(domain: Domain, observed: ObservedDomain) -> ObservedDomain:
    """Leave out what the catalog has of an earlier object of this name and cannot go over to this one."""
    record = observed.view.record if observed.view else None
    if record is None or record.uid == domain.metadata.uid:
        return observed
    adopts = (record.tenant, record.base_uri) == (observed.tenant, domain.spec.base_model.uri)
    return observed if adopts else replace(observed, view=None)


def _declare(domain: Domain, observed: ObservedDomain) -> tuple[Action, ...]:
    record = DomainRecord(
        uid=domain.metadata.uid,
        tenant=observed.tenant,
        generation=domain.metadata.generation,
        spec_digest=_wanted(domain, observed),
        base_uri=domain.spec.base_model.uri,
        parent=domain.parent_key,
    )
    if observed.view is not None and observed.view.record == record:
        return ()
    return (DeclareDomain(record, "the catalog does not have it as declared"),)


def _training_decision(domain: Domain, observed: ObservedDomain) -> Decision:
    parent = observed.parent.current if observed.parent else None
    digest = _wanted(domain, observed)
    current = _current(observed)

    def request(attempt: int) -> RunCreate:
        return RunCreate(
            uid=domain.metadata.uid,
            tenant=observed.tenant,
            spec_digest=digest,
            attempt=attempt,
            spec=DomainRunSpec(
                namespace=domain.metadata.namespace,
                name=domain.metadata.name,
                spec=_spec_to_train(domain.spec, parent),
                parent=parent,
            ),
        )

    state = TrainingState(
        wanted=digest,
        published=current.spec_digest if current else None,
        run=observed.run,
        job=observed.job,
        suspended=domain.spec.suspend,
        now=observed.now,
        resources=domain.spec.resources,
    )
    return decide_training(state, request)


def _wanted(domain: Domain, observed: ObservedDomain) -> Digest:
    """Return the digest of what should be published; while a parent has no layers, of the spec alone."""
    parent = observed.parent.current if observed.parent else None
    return domain_run_digest(domain, parent.layers.digest if parent else None)


def _spec_to_train(spec: DomainSpec, parent: DomainVersionView | None) -> DomainSpec:
    """A child that names no split has its parent's: half of the layers may be another number."""
    if parent is None or spec.split is not None:
        return spec
    return spec.model_copy(update={"split": parent.split})


def _current(observed: ObservedDomain) -> DomainVersionView | None:
    return observed.view.current if observed.view else None


def _at_work(
    domain: Domain,
    observed: ObservedDomain,
    writer: ConditionWriter,
    declare: tuple[Action, ...],
    decision: Decision,
) -> Plan[DomainStatus]:
    current = _current(observed)
    up_to_date = decision.phase is TrainingPhase.UP_TO_DATE
    if up_to_date and current is not None:
        for type_ in _WORK[:-1]:
            read = data_text(current.data) if type_ == DomainCondition.CORPUS_READY else ""
            writer.true(type_, Reason.SUCCEEDED, read)
        writer.true(DomainCondition.PUBLISHED, Reason.PUBLISHED, f"Version {current.version} is published.")
    else:
        write_stages(writer, _WORK, _STAGES, decision)
    write_summary(writer, _WORK, decision.phase)
    _write_ready(writer, current, up_to_date)
    run = decision.run
    status = _status(domain, observed, writer).model_copy(
        update={
            "phase": phase_of(decision.phase, serves=current is not None),
            "run_ref": run.id if run else None,
            "progress": progress_text(decision),
            "data": data_read(decision, current.data if current else ()),
        }
    )
    return Plan(status, declare + decision.actions, decision.requeue_after)


def _blocked(
    domain: Domain,
    observed: ObservedDomain,
    writer: ConditionWriter,
    declare: tuple[Action, ...],
    why: Rejection,
) -> Plan[DomainStatus]:
    write_waiting(writer, _WORK, *why)
    writer.reconciling(*why)
    current = _current(observed)
    _write_ready(writer, current, up_to_date=False)
    phase = Phase.UPDATING.value if current else Phase.WAITING.value
    return Plan(_status(domain, observed, writer).model_copy(update={"phase": phase}), declare)


def _refused(
    domain: Domain, observed: ObservedDomain, writer: ConditionWriter, rejection: Rejection
) -> Plan[DomainStatus]:
    write_rejection(writer, rejection)
    write_waiting(writer, _WORK, Reason.WAITING, "Waits for the Domain to be accepted.")
    current = _current(observed)
    _write_ready(writer, current, up_to_date=False)
    phase = Phase.DEGRADED.value if current else Phase.FAILED.value
    return Plan(_status(domain, observed, writer).model_copy(update={"phase": phase}))


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


def _status(domain: Domain, observed: ObservedDomain, writer: ConditionWriter) -> DomainStatus:
    current = _current(observed)
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
