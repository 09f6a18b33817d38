"""The plan of a Domain."""

from dataclasses import replace

from hmi_api.internal.catalog import DomainRecord, DomainVersionView
from hmi_api.internal.runs import DomainRunSpec
from hmi_api.names import FINALIZER, Digest
from hmi_api.resources.common import ArtifactStatus
from hmi_api.resources.conditions import DomainCondition, Phase
from hmi_api.resources.domain import Domain, DomainSpec, DomainStatus
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import domain_run_digest
from hmi_operator.planning.actions import Action, AddFinalizer, Declare, Plan
from hmi_operator.planning.conditions import (
    ConditionWriter,
    data_read,
    data_text,
    previous_version_serves,
    progress_text,
    training_phase_name,
    write_stages,
    write_summary,
    write_waiting,
)
from hmi_operator.planning.deletion import blocks_deletion, plan_deletion, withdrawals
from hmi_operator.planning.observed import ObservedDomain
from hmi_operator.planning.revocation import describe_dependent, describe_still_served
from hmi_operator.planning.training import Decision, TrainingPhase, decide_training
from hmi_operator.planning.validation import Rejection, validate_domain, write_rejection

_TRAINING = [
    DomainCondition.CORPUS_READY.value,
    DomainCondition.TRAINED.value,
    DomainCondition.TABLE_BUILT.value,
    DomainCondition.PUBLISHED.value,
]
"""The conditions of a training run, in order."""
_STAGES = {
    "corpus": DomainCondition.CORPUS_READY.value,
    "training": DomainCondition.TRAINED.value,
    "table": DomainCondition.TABLE_BUILT.value,
    "evaluation": DomainCondition.TABLE_BUILT.value,
    "publishing": DomainCondition.PUBLISHED.value,
}


def plan_domain(domain: Domain, observed: ObservedDomain) -> Plan[DomainStatus]:
    """Return the next status and the actions for a Domain. Pure: the same arguments give the same plan."""
    if domain.metadata.deletion_timestamp is not None:
        return _plan_deletion(domain, observed)
    if FINALIZER not in domain.metadata.finalizers:
        action = AddFinalizer(why="what is created for the Domain must be deleted with it")
        return Plan(domain.status, (action,), requeue_after=0.0)
    observed = _without_namesake(domain, observed)
    writer = ConditionWriter(
        domain.status.conditions, generation=domain.metadata.generation, now=observed.now
    )
    rejection = validate_domain(domain, observed)
    if rejection is not None:
        return _plan_rejected(domain, observed, writer, rejection)
    still_served = describe_still_served(observed.dependents, observed.environment)
    writer.true(DomainCondition.ACCEPTED, Reason.ACCEPTED, still_served)
    declare = _declare(domain, observed)
    if observed.parent is not None and observed.parent.current is None:
        message = f"Waits for its parent {observed.parent.key} to be published."
        return _plan_waiting(domain, observed, writer, declare, (Reason.PARENT_NOT_READY, message))
    return _plan_training(domain, observed, writer, declare, _decide_training(domain, observed))


def _plan_deletion(domain: Domain, observed: ObservedDomain) -> Plan[DomainStatus]:
    return plan_deletion(
        domain,
        domain.status,
        observed.run,
        observed.now,
        dependents=tuple(
            describe_dependent(dependent, observed.environment)
            for dependent in observed.dependents
            if blocks_deletion(domain, dependent, observed.lineage)
        ),
        before=withdrawals(domain, observed.dependents),
    )


def _without_namesake(domain: Domain, observed: ObservedDomain) -> ObservedDomain:
    """Leave out the catalog's view of an earlier object of this name, unless this object can take it over."""
    record = observed.view.record if observed.view else None
    if record is None or record.uid == domain.metadata.uid:
        return observed
    same = (record.tenant, record.base_uri) == (observed.tenant, domain.spec.base_model.uri)
    return observed if same else replace(observed, view=None)


def _declare(domain: Domain, observed: ObservedDomain) -> tuple[Action, ...]:
    record = DomainRecord(
        uid=domain.metadata.uid,
        tenant=observed.tenant,
        generation=domain.metadata.generation,
        spec_digest=_digest(domain, observed),
        base_uri=domain.spec.base_model.uri,
        parent=domain.parent_key,
    )
    if observed.view is not None and observed.view.record == record:
        return ()
    return (Declare(record, why="the catalog's record differs"),)


def _decide_training(domain: Domain, observed: ObservedDomain) -> Decision:
    parent = observed.parent.current if observed.parent else None
    spec = DomainRunSpec(
        namespace=domain.metadata.namespace,
        name=domain.metadata.name,
        spec=_spec_to_train(domain.spec, parent),
        parent=parent,
    )
    return decide_training(domain, observed, _digest(domain, observed), spec)


def _digest(domain: Domain, observed: ObservedDomain) -> Digest:
    """Return the digest of what should be published; without a parent's layers, of the spec alone."""
    parent = observed.parent.current if observed.parent else None
    return domain_run_digest(domain, parent.layers.digest if parent else None)


def _spec_to_train(spec: DomainSpec, parent: DomainVersionView | None) -> DomainSpec:
    """Return the spec with the parent's split if it names none: the default may be another number."""
    if parent is None or spec.split is not None:
        return spec
    return spec.model_copy(update={"split": parent.split})


def _plan_training(
    domain: Domain,
    observed: ObservedDomain,
    writer: ConditionWriter,
    declare: tuple[Action, ...],
    decision: Decision,
) -> Plan[DomainStatus]:
    current = observed.current
    up_to_date = decision.phase is TrainingPhase.UP_TO_DATE
    if up_to_date and current is not None:
        for type_ in _TRAINING[:-1]:
            read = data_text(current.data) if type_ == DomainCondition.CORPUS_READY else ""
            writer.true(type_, Reason.SUCCEEDED, read)
        writer.true(DomainCondition.PUBLISHED, Reason.PUBLISHED, f"Version {current.version} is published.")
    else:
        write_stages(writer, _TRAINING, _STAGES, decision)
    write_summary(writer, _TRAINING, decision.phase)
    _write_ready(writer, current, up_to_date)
    run = decision.run
    status = _status(domain, observed, writer).model_copy(
        update={
            "phase": training_phase_name(decision.phase, serves=current is not None),
            "run_ref": run.id if run else None,
            "progress": progress_text(decision),
            "data": data_read(decision, current.data if current else ()),
        }
    )
    return Plan(status, declare + decision.actions, decision.requeue_after)


def _plan_waiting(
    domain: Domain,
    observed: ObservedDomain,
    writer: ConditionWriter,
    declare: tuple[Action, ...],
    why: tuple[str, str],
) -> Plan[DomainStatus]:
    write_waiting(writer, _TRAINING, *why)
    writer.reconciling(*why)
    _write_ready(writer, observed.current, up_to_date=False)
    phase = Phase.UPDATING.value if observed.current else Phase.WAITING.value
    return Plan(_status(domain, observed, writer).model_copy(update={"phase": phase}), declare)


def _plan_rejected(
    domain: Domain, observed: ObservedDomain, writer: ConditionWriter, rejection: Rejection
) -> Plan[DomainStatus]:
    write_rejection(writer, rejection)
    write_waiting(writer, _TRAINING, Reason.WAITING, "Waits for the Domain to be accepted.")
    _write_ready(writer, observed.current, up_to_date=False)
    phase = Phase.DEGRADED.value if observed.current else Phase.FAILED.value
    return Plan(_status(domain, observed, writer).model_copy(update={"phase": phase}))


def _write_ready(writer: ConditionWriter, current: DomainVersionView | None, up_to_date: bool) -> None:
    """Write Ready: True while any version is published, whatever becomes of the next one."""
    if current is None:
        writer.not_ready([DomainCondition.ACCEPTED.value, *_TRAINING])
        return
    if up_to_date:
        writer.true(DomainCondition.READY, Reason.SERVING, f"Version {current.version} serves.")
        return
    message = previous_version_serves(writer, [DomainCondition.ACCEPTED.value, *_TRAINING], current.version)
    writer.true(DomainCondition.READY, Reason.PREVIOUS_VERSION, message)


def _status(domain: Domain, observed: ObservedDomain, writer: ConditionWriter) -> DomainStatus:
    current = observed.current
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
    own = current.tables[0] if current.tables else current.layers
    return ArtifactStatus(uri=own.uri, digest=own.digest, bytes=own.bytes)
