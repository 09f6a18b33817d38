"""The plan of a Domain."""

from dataclasses import replace

from hmi_api.internal.catalog import DomainRecord, DomainVersionView
from hmi_api.internal.runs import DomainRunSpec
from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import DomainCondition, Phase
from hmi_api.resources.domain import Domain, DomainSpec, DomainStatus, SharedTableStatus, TableLevelStatus
from hmi_api.resources.reasons import Reason
from hmi_api.resources.spec_changes import domain_run_digest
from hmi_operator.planning.actions import Action, AddFinalizer, Declare, Plan
from hmi_operator.planning.conditions import (
    ConditionWriter,
    common_status,
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
from hmi_operator.planning.refresh import RefreshPlan, plan_refresh, stop_refresh
from hmi_operator.planning.revocation import describe_dependent, describe_still_served
from hmi_operator.planning.training import Decision, TrainingPhase, decide_training
from hmi_operator.planning.validation import Rejection, validate_domain, write_rejection

_HIT_RATE_STEP = 0.01
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
    return _DomainPlanner(domain, _without_namesake(domain, observed)).plan()


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


class _DomainPlanner:
    """Plans a Domain that has the finalizer and is not being deleted."""

    def __init__(self, domain: Domain, observed: ObservedDomain) -> None:
        self._domain = domain
        self._observed = observed
        self._current = observed.current
        self._parent = observed.parent.current if observed.parent else None
        self._writer = ConditionWriter.of(domain, observed.now)
        self._digest = domain_run_digest(domain, self._parent.layers.digest if self._parent else None)
        """Of what should be published; without a parent's layers, of the spec alone."""

    def plan(self) -> Plan[DomainStatus]:
        observed = self._observed
        rejection = validate_domain(self._domain, observed)
        if rejection is not None:
            return self._plan_rejected(rejection)
        still_served = describe_still_served(observed.dependents, observed.environment)
        self._writer.true(DomainCondition.ACCEPTED, Reason.ACCEPTED, still_served)
        declare = self._declare()
        if observed.parent is not None and observed.parent.current is None:
            message = f"Waits for its parent {observed.parent.key} to be published."
            return self._plan_waiting(declare, (Reason.PARENT_NOT_READY, message))
        spec = DomainRunSpec(
            namespace=self._domain.metadata.namespace,
            name=self._domain.metadata.name,
            spec=_spec_to_train(self._domain.spec, self._parent),
            parent=self._parent,
        )
        return self._plan_training(declare, decide_training(self._domain, observed, self._digest, spec))

    def _declare(self) -> tuple[Action, ...]:
        record = DomainRecord(
            uid=self._domain.metadata.uid,
            tenant=self._observed.tenant,
            generation=self._domain.metadata.generation,
            spec_digest=self._digest,
            base_uri=self._domain.spec.base_model.uri,
            parent=self._domain.parent_key,
        )
        if self._observed.view is not None and self._observed.view.record == record:
            return ()
        return (Declare(record, why="the catalog's record differs"),)

    def _plan_training(self, declare: tuple[Action, ...], decision: Decision) -> Plan[DomainStatus]:
        writer, current = self._writer, self._current
        up_to_date = decision.phase is TrainingPhase.UP_TO_DATE
        if up_to_date and current is not None:
            for type_ in _TRAINING[:-1]:
                read = data_text(current.data) if type_ == DomainCondition.CORPUS_READY else ""
                writer.true(type_, Reason.SUCCEEDED, read)
            message = f"Version {current.version} is published."
            writer.true(DomainCondition.PUBLISHED, Reason.PUBLISHED, message)
        else:
            write_stages(writer, _TRAINING, _STAGES, decision)
        write_summary(writer, _TRAINING, decision.phase)
        self._write_ready(up_to_date)
        refresh = (
            plan_refresh(self._domain, self._observed, current, writer)
            if up_to_date and current is not None
            else RefreshPlan(
                self._domain.status.refresh, stop_refresh(self._observed, "the spec was changed")
            )
        )
        run = decision.run or (refresh.decision.run if refresh.decision else None)
        status = self._status(training_phase_name(decision.phase, serves=current is not None))
        status = status.model_copy(
            update={
                "run_ref": run.id if run else None,
                "progress": progress_text(refresh.decision or decision),
                "data": data_read(decision, status.data),
                "refresh": refresh.status,
            }
        )
        waits = [
            seconds for seconds in (decision.requeue_after, refresh.requeue_after) if seconds is not None
        ]
        return Plan(status, (*declare, *refresh.actions, *decision.actions), min(waits, default=None))

    def _plan_waiting(self, declare: tuple[Action, ...], why: tuple[str, str]) -> Plan[DomainStatus]:
        write_waiting(self._writer, _TRAINING, *why)
        self._writer.reconciling(*why)
        self._write_ready(up_to_date=False)
        phase = Phase.UPDATING if self._current else Phase.WAITING
        return Plan(self._status(phase.value), declare)

    def _plan_rejected(self, rejection: Rejection) -> Plan[DomainStatus]:
        write_rejection(self._writer, rejection)
        write_waiting(self._writer, _TRAINING, Reason.WAITING, "Waits for the Domain to be accepted.")
        self._write_ready(up_to_date=False)
        phase = Phase.DEGRADED if self._current else Phase.FAILED
        return Plan(self._status(phase.value))

    def _write_ready(self, up_to_date: bool) -> None:
        """Write Ready: True while any version is published, whatever becomes of the next one."""
        writer, current = self._writer, self._current
        before = [DomainCondition.ACCEPTED.value, *_TRAINING]
        if current is None:
            writer.not_ready(before)
        elif up_to_date:
            writer.true(DomainCondition.READY, Reason.SERVING, f"Version {current.version} serves.")
        else:
            message = previous_version_serves(writer, before, current.version)
            writer.true(DomainCondition.READY, Reason.PREVIOUS_VERSION, message)

    def _status(self, phase: str) -> DomainStatus:
        current = self._current
        artifact = (current.tables[0] if current.tables else current.layers) if current else None
        return DomainStatus(
            **common_status(self._domain, self._observed, self._writer, phase, artifact),
            entries=current.entries if current else None,
            coverage=current.coverage if current else None,
            hit_rate=self._hit_rate(),
            refresh=self._domain.status.refresh,
            levels=self._levels(),
            shared=self._shared(),
        )

    def _levels(self) -> list[TableLevelStatus]:
        tree = self._observed.view.tree if self._observed.view else None
        return [
            TableLevelStatus(domain=level.domain or None, entries=level.entries, bytes=level.bytes)
            for level in (tree.levels if tree else [])
        ]

    def _shared(self) -> SharedTableStatus | None:
        tree = self._observed.view.tree if self._observed.view else None
        if tree is None or not tree.below or not tree.levels:
            return None
        saved = (tree.below - 1) * tree.levels[0].bytes
        return SharedTableStatus(domains=tree.below, saved_bytes_at_most=saved)

    def _hit_rate(self) -> float | None:
        """Return the current version's hit rate, or that of the status if they differ by less than 0.01.

        It changes with every request, and each change of a status is a write.
        """
        lookups = self._observed.view.lookups if self._observed.view else None
        if lookups is None or lookups.hit_rate is None or self._current is None:
            return None
        before = self._domain.status
        same = before.version == self._current.version and before.hit_rate is not None
        if same and abs(lookups.hit_rate - (before.hit_rate or 0.0)) < _HIT_RATE_STEP:
            return before.hit_rate
        return round(lookups.hit_rate, 3)


def _spec_to_train(spec: DomainSpec, parent: DomainVersionView | None) -> DomainSpec:
    """Return the spec with the parent's split if it names none: the default may be another number."""
    if parent is None or spec.split is not None:
        return spec
    return spec.model_copy(update={"split": parent.split})
