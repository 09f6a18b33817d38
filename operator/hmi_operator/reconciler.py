"""The engine: gathers the observed of one resource, plans, takes the actions and writes the status."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeVar

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.catalog import AdapterView, DomainView, PublishAgain
from hmi_api.internal.runs import RunCreate, RunState, RunView
from hmi_api.names import FINALIZER, DomainKey
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus
from hmi_operator.domain_views import DomainCache
from hmi_operator.erasing import Eraser
from hmi_operator.planning import (
    Action,
    Dependent,
    DomainDependency,
    Environment,
    JobView,
    ObservedAdapter,
    ObservedDomain,
    Plan,
    plan_adapter,
    plan_domain,
    rejected_status,
)
from hmi_operator.planning.actions import (
    AddFinalizer,
    DeclareAdapter,
    DeclareDomain,
    Erase,
    PublishAgainOrStartRun,
    RemoveFinalizer,
    Restore,
    ResumeRun,
    Revoke,
    StartRun,
    StopRun,
    Withdraw,
)
from hmi_operator.planning.deletion import deletion_delayed
from hmi_operator.planning.dependents import holds, may_depend_on
from hmi_operator.planning.validation import MAX_DEPTH
from hmi_operator.ports import ControlPlane, ResourceRef, ResourceStore, TrainingJobs
from hmi_operator.run_observer import RunObserver

logger = logging.getLogger(__name__)

_UNKNOWN_TENANT = "UnknownTenant"
_MOST_TOLD = 10
"""TaskAdapters of others that a Domain tells of."""
REFUSED_SECONDS = 60.0
"""When a resource that the control plane refused is tried again, though nothing was heard."""

StatusListener = Callable[[Domain | TaskAdapter, CommonStatus, CommonStatus], None]
StatusT = TypeVar("StatusT", DomainStatus, TaskAdapterStatus)


@dataclass(frozen=True)
class ReconcileResult:
    """What came of reconciling one resource."""

    requeue_after: float | None = None
    """Seconds until it should be reconciled again though nothing was heard; None to wait."""
    enqueue: tuple[ResourceRef, ...] = ()
    """Resources that should be reconciled because of what changed here."""


class Reconciler:
    """Brings one resource at a time nearer to its declared spec.

    The same on Kubernetes and on one machine: what differs is behind the three ports. It keeps no state but
    a short-lived cache of Domains. ``clock`` returns the present time with its time zone.
    ``require_leadership`` is called before each change and raises ``NotReady`` when this replica is not the
    leader. ``environment`` says what training and serving support; by default everything.
    ``on_status_change`` is called after each status write with the resource, its old and its new status,
    ``on_adapter_view`` with the key and view of each TaskAdapter that was read from the catalog.
    """

    def __init__(
        self,
        store: ResourceStore,
        control_plane: ControlPlane,
        jobs: TrainingJobs,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        require_leadership: Callable[[], None] = lambda: None,
        environment: Environment | None = None,
        on_status_change: StatusListener = lambda resource, old, new: None,
        on_adapter_view: Callable[[str, AdapterView | None], None] = lambda key, view: None,
    ) -> None:
        self._store = store
        self._control_plane = control_plane
        self._domains = DomainCache(control_plane)
        self._jobs = jobs
        self._runs = RunObserver(control_plane, jobs)
        self._eraser = Eraser(store, control_plane, jobs, require_leadership, erased=self._domains.forget)
        self._clock = clock
        self._require_leadership = require_leadership
        self._environment = environment or Environment()
        self._on_status_change = on_status_change
        self._on_adapter_view = on_adapter_view

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        """Bring one resource a action nearer to what is declared.

        Raises ``NotReady`` when the control plane does not answer; nothing is lost by trying again. What is
        being deleted then says so in its status; everything else keeps the status that it has.
        """
        resource = await self._store.get(ref)
        if resource is None:
            return ReconcileResult()
        try:
            if isinstance(resource, Domain):
                return await self._reconcile_domain(resource)
            return await self._reconcile_adapter(resource)
        except HmiError as error:
            if resource.metadata.deletion_timestamp is not None:
                await self._say_why_it_stays(ref, resource.metadata.uid, error)
            raise

    async def _reconcile_domain(self, domain: Domain) -> ReconcileResult:
        observed = await self._observe_domain(domain)
        plan = plan_domain(domain, observed)
        if _only_holds(plan):
            held = await self._hold(domain, plan.actions)
            if not isinstance(held, Domain):
                return ReconcileResult(plan.requeue_after)
            domain, plan = held, plan_domain(held, observed)

        def ahead(run: RunView, job: JobView | None) -> Plan[DomainStatus]:
            return plan_domain(domain, replace(observed, run=run, job=job))

        return await self._carry_out(domain, domain.status, plan, ahead)

    async def _reconcile_adapter(self, adapter: TaskAdapter) -> ReconcileResult:
        observed = await self._observe_adapter(adapter)
        plan = plan_adapter(adapter, observed)
        if _only_holds(plan):
            held = await self._hold(adapter, plan.actions)
            if not isinstance(held, TaskAdapter):
                return ReconcileResult(plan.requeue_after)
            adapter, plan = held, plan_adapter(held, observed)

        def ahead(run: RunView, job: JobView | None) -> Plan[TaskAdapterStatus]:
            return plan_adapter(adapter, replace(observed, run=run, job=job))

        return await self._carry_out(adapter, adapter.status, plan, ahead)

    # --- observing --------------------------------------------------------------------------------

    async def _observe_domain(self, domain: Domain) -> ObservedDomain:
        run = await self._runs.of(domain)
        job = await self._runs.job(run)
        deleted = domain.metadata.deletion_timestamp is not None
        view = await self._domains.fresh(domain.key)
        if view is not None and self._is_of_deleted(domain, view):
            self._require_leadership()
            await self._control_plane.erase_domain(domain.key, view.record.uid)
            view = await self._domains.fresh(domain.key)
        lineage = await self._lineage(domain)
        return ObservedDomain(
            now=self._clock(),
            tenant=await self._store.tenant(domain.metadata.namespace),
            view=view,
            run=run,
            job=job,
            parent=await self._dependency(domain.parent_key) if domain.parent_key else None,
            lineage=lineage,
            dependents=await (self._dependents(domain, lineage) if deleted else self._unshared(domain)),
            environment=self._environment,
        )

    async def _observe_adapter(self, adapter: TaskAdapter) -> ObservedAdapter:
        run = await self._runs.of(adapter)
        job = await self._runs.job(run)
        key = ResourceRef.of(adapter).key
        view = await self._control_plane.adapter(key)
        if view is not None and self._is_of_deleted(adapter, view):
            self._require_leadership()
            await self._control_plane.erase_adapter(key, view.record.uid)
            view = await self._control_plane.adapter(key)
        self._on_adapter_view(key, view)
        return ObservedAdapter(
            now=self._clock(),
            tenant=await self._store.tenant(adapter.metadata.namespace),
            domain=await self._dependency(adapter.domain_key),
            view=view,
            run=run,
            job=job,
            environment=self._environment,
        )

    def _is_of_deleted(self, resource: Domain | TaskAdapter, view: DomainView | AdapterView) -> bool:
        """Say whether what the catalog has is of an object of this name whose deletion was seen."""
        uid = view.record.uid
        return uid != resource.metadata.uid and self._store.was_deleted(uid)

    async def _dependency(self, key: DomainKey) -> DomainDependency:
        domain = await self._declared(key)
        if domain is None:
            return DomainDependency(key, None)
        view = await self._domains.recent(key)
        return DomainDependency(key, domain, view.current if view else None)

    async def _lineage(self, domain: Domain) -> tuple[DomainKey, ...]:
        lineage = [domain.key]
        above: Domain | None = domain
        while above is not None and above.parent_key is not None and len(lineage) <= MAX_DEPTH:
            key = above.parent_key
            repeated = key in lineage
            lineage.append(key)
            above = None if repeated else await self._declared(key)
        return tuple(lineage)

    async def _dependents(self, domain: Domain, lineage: tuple[DomainKey, ...]) -> tuple[Dependent, ...]:
        """Return what names a Domain.

        Once something is known to hold the Domain, the catalog is not asked for others that may stand on it:
        they may be thousands.
        """
        found: list[Dependent] = []
        is_held = False
        for ref in await self._store.dependents(domain.key):
            resource = await self._store.get(ref)
            if resource is None:
                continue
            if is_held and may_depend_on(domain, resource, lineage):
                found.append(Dependent(resource, asked=False))
                continue
            found.append(Dependent(resource, await self._view(resource)))
            is_held = is_held or holds(domain, found[-1], lineage)
        return tuple(found)

    async def _unshared(self, domain: Domain) -> tuple[Dependent, ...]:
        """Return a few TaskAdapters that a Domain is not shared with: its owner is told of them."""
        refs = [
            ref
            for ref in await self._store.dependents(domain.key)
            if ref.kind == "TaskAdapter" and not domain.is_shared_with(ref.namespace)
        ]
        found = [await self._store.get(ref) for ref in refs[:_MOST_TOLD]]
        return tuple([Dependent(one, await self._view(one)) for one in found if one is not None])

    async def _view(self, resource: Domain | TaskAdapter) -> DomainView | AdapterView | None:
        if isinstance(resource, Domain):
            return await self._domains.fresh(resource.key)
        return await self._control_plane.adapter(ResourceRef.of(resource).key)

    async def _declared(self, key: DomainKey) -> Domain | None:
        namespace, _, name = key.partition("/")
        found = await self._store.get(ResourceRef("Domain", namespace, name))
        return found if isinstance(found, Domain) else None

    # --- acting -----------------------------------------------------------------------------------

    async def _hold(
        self, resource: Domain | TaskAdapter, actions: tuple[Action, ...]
    ) -> Domain | TaskAdapter | None:
        """Add the finalizer; return the resource, or None where it changed and must be observed anew."""
        ref = ResourceRef.of(resource)
        for action in actions:
            await self._act(resource, action)
        held = await self._store.get(ref)
        if held is None or FINALIZER not in held.metadata.finalizers:
            return None
        before, after = resource.metadata, held.metadata
        as_before = (before.uid, before.generation) == (after.uid, after.generation)
        return held if as_before and after.deletion_timestamp is None else None

    async def _carry_out(
        self,
        resource: Domain | TaskAdapter,
        old: StatusT,
        plan: Plan[StatusT],
        ahead: Callable[[RunView, JobView | None], Plan[StatusT]],
    ) -> ReconcileResult:
        """Take the actions and write the status; ``ahead`` plans again with a run that was just started."""
        ref = ResourceRef.of(resource)
        status, requeue_after, written = plan.status, plan.requeue_after, old
        started: RunView | None = None
        if resource.metadata.deletion_timestamp is not None and status != old:
            # Told before, since erasing may take long and nothing is left to tell it of afterwards.
            await self._write(resource, old, status)
            written = status
        try:
            for action in plan.actions:
                started = await self._act(resource, action) or started
            if started is not None:
                status = status.model_copy(update={"run_ref": started.id})
                then = ahead(started, await self._runs.job(started))
                if all(isinstance(action, (DeclareAdapter, DeclareDomain)) for action in then.actions):
                    # Said in one status that it was started and how it goes.
                    status, requeue_after = then.status, then.requeue_after
        except InvalidInput as error:
            if resource.metadata.deletion_timestamp is not None:
                raise  # why it stays is told instead
            logger.warning("%s: the control plane refused it: %s", ref, error)
            status, requeue_after = rejected_status(resource, status, error, self._clock()), REFUSED_SECONDS
        if status != written:
            await self._write(resource, written, status)
        gone = any(isinstance(action, RemoveFinalizer) for action in plan.actions)
        return ReconcileResult(requeue_after, await self._to_enqueue(resource, old, status, gone=gone))

    async def _say_why_it_stays(self, ref: ResourceRef, uid: str, error: HmiError) -> None:
        """Tell why something that is deleted does not go; it goes by itself when the cause has passed."""
        resource = await self._store.get(ref)
        if resource is None or resource.metadata.uid != uid:
            return
        now = self._clock()
        if isinstance(resource, Domain):
            await self._write(
                resource, resource.status, deletion_delayed(resource, resource.status, error, now)
            )
        else:
            await self._write(
                resource, resource.status, deletion_delayed(resource, resource.status, error, now)
            )

    async def _write(self, resource: Domain | TaskAdapter, old: StatusT, new: StatusT) -> None:
        self._require_leadership()
        await self._store.write_status(ResourceRef.of(resource), resource.metadata.uid, new)
        self._on_status_change(resource, old, new)

    async def _act(self, resource: Domain | TaskAdapter, action: Action) -> RunView | None:
        """Take one action, if this process still may; return the run that it started, if it did."""
        self._require_leadership()
        logger.info("%s: %s, because %s", ResourceRef.of(resource), type(action).__name__, action.why)
        return await self._take(resource, action)

    async def _take(self, resource: Domain | TaskAdapter, action: Action) -> RunView | None:
        """Take one action; return the run that it started, if it did."""
        ref, uid = ResourceRef.of(resource), resource.metadata.uid
        match action:
            case AddFinalizer():
                await self._store.add_finalizer(ref, uid, FINALIZER)
            case RemoveFinalizer():
                await self._store.remove_finalizer(ref, uid, FINALIZER)
            case DeclareDomain():
                record = action.record
                await self._declare(
                    ref.namespace, lambda: self._control_plane.declare_domain(ref.key, record)
                )
            case DeclareAdapter():
                of_adapter = action.record
                await self._declare(
                    ref.namespace, lambda: self._control_plane.declare_adapter(ref.key, of_adapter)
                )
            case StartRun():
                return await self._start(action.request)
            case PublishAgainOrStartRun():
                request = action.request
                wanted = PublishAgain(uid=request.uid, spec_digest=request.spec_digest)
                number = await self._control_plane.publish_again(ref.kind, ref.key, wanted)
                if number is None:
                    return await self._start(request)
                logger.info("%s: the version made from this spec before is version %d now", ref, number)
            case ResumeRun():
                resumed = await self._control_plane.run(action.run_id)
                if resumed is not None:
                    await self._jobs.start(resumed)
            case StopRun():
                await self._jobs.stop(action.run_id, ref.namespace)
                await self._control_plane.fail_run(action.run_id, action.failure)
            case Erase() | Withdraw() | Revoke() | Restore():
                await self._eraser.take(resource, action)
        return None

    async def _start(self, request: RunCreate) -> RunView:
        run = await self._control_plane.create_run(request)
        if run.state in (RunState.PENDING, RunState.RUNNING):
            await self._jobs.start(run)
        return run

    async def _declare(self, namespace: str, declare: Callable[[], Awaitable[None]]) -> None:
        """Declare a resource; its tenant is made where the catalog does not know it yet."""
        try:
            await declare()
        except InvalidInput as error:
            if error.reason != _UNKNOWN_TENANT:
                raise
            await self._control_plane.ensure_tenant(await self._store.tenant(namespace))
            await declare()

    async def _to_enqueue(
        self, resource: Domain | TaskAdapter, old: StatusT, new: StatusT, *, gone: bool
    ) -> tuple[ResourceRef, ...]:
        """A Domain wakes what stands on it when that can matter; what goes wakes what it stood on."""
        below: list[ResourceRef] = []
        if isinstance(resource, Domain) and (gone or (old.version, old.phase) != (new.version, new.phase)):
            below = await self._store.dependents(resource.key)
        above = resource.parent_key if isinstance(resource, Domain) else resource.domain_key
        if not gone or above is None:
            return tuple(below)
        namespace, _, name = above.partition("/")
        return (*below, ResourceRef("Domain", namespace, name))


def _only_holds(plan: Plan[StatusT]) -> bool:
    return bool(plan.actions) and all(isinstance(action, AddFinalizer) for action in plan.actions)
