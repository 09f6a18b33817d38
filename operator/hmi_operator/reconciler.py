"""The reconciler: observes one resource, plans, takes the actions and writes the status."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.catalog import AdapterRecord, AdapterView, DomainRecord, PublishAgain
from hmi_api.internal.refreshes import RestoreTable as RestoreTableRequest
from hmi_api.internal.runs import RunCreate, RunState, RunView
from hmi_api.names import FINALIZER, DomainKey
from hmi_api.resources.common import CommonStatus
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.kinds import Resource
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.observer import Observer
from hmi_operator.orphans import find_orphans
from hmi_operator.planning import (
    Action,
    Environment,
    JobView,
    ObservedAdapter,
    ObservedDomain,
    Plan,
    Status,
    plan_adapter,
    plan_domain,
    rejected_status,
)
from hmi_operator.planning.actions import (
    AddFinalizer,
    Declare,
    DeleteContents,
    PublishAgainOrStartRun,
    RemoveFinalizer,
    Restore,
    RestoreTable,
    ResumeRun,
    Revoke,
    StartRun,
    StopRun,
    Withdraw,
)
from hmi_operator.planning.deletion import delayed_status
from hmi_operator.ports import Ports, ResourceRef

logger = logging.getLogger(__name__)

_UNKNOWN_TENANT = "UnknownTenant"
REJECTED_SECONDS = 60.0
"""After how long a resource that the control plane rejected is reconciled again."""

StatusListener = Callable[[Resource, CommonStatus, CommonStatus], None]
ResourceT = TypeVar("ResourceT", Domain, TaskAdapter)
ObservedT = TypeVar("ObservedT", ObservedDomain, ObservedAdapter)


@dataclass(frozen=True)
class ReconcileResult:
    """What follows from reconciling one resource."""

    requeue_after: float | None = None
    """Seconds until the resource is reconciled again without an event; None to wait for one."""
    enqueue: tuple[ResourceRef, ...] = ()
    """Other resources that this change affects."""


class Reconciler:
    """Brings one resource at a time nearer to its declared spec.

    The same on Kubernetes and on one machine: what differs is behind the ports. It keeps no state but a
    short-lived cache of Domains. ``environment`` is what training and serving support; by default everything.
    ``on_status_change`` is called after each status write with the resource, its old and its new status,
    ``on_adapter_view`` with the key and view of each TaskAdapter that was read from the catalog.
    """

    def __init__(
        self,
        ports: Ports,
        *,
        environment: Environment | None = None,
        on_status_change: StatusListener = lambda resource, old, new: None,
        on_adapter_view: Callable[[str, AdapterView | None], None] = lambda key, view: None,
    ) -> None:
        self._ports = ports
        self._observer = Observer(ports, environment or Environment(), on_adapter_view)
        self._on_status_change = on_status_change

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        """Bring one resource a step nearer to its spec.

        Raises ``NotReady`` when the control plane does not answer; a retry loses nothing. The status of a
        resource that is being deleted then says why it stays.
        """
        resource = self._ports.store.get(ref)
        if resource is None:
            return ReconcileResult()
        try:
            if isinstance(resource, Domain):
                return await self._reconcile(resource, self._observer.observe_domain, plan_domain)
            return await self._reconcile(resource, self._observer.observe_adapter, plan_adapter)
        except HmiError as error:
            if resource.metadata.deletion_timestamp is not None:
                await self._write_deletion_delayed(ref, resource.metadata.uid, error)
            raise

    async def _reconcile(
        self,
        resource: ResourceT,
        observe: Callable[[ResourceT], Awaitable[ObservedT]],
        make_plan: Callable[[ResourceT, ObservedT], Plan[Status]],
    ) -> ReconcileResult:
        observed = await observe(resource)
        plan = make_plan(resource, observed)
        if plan.actions and all(isinstance(action, AddFinalizer) for action in plan.actions):
            present = await self._add_finalizer(resource, plan.actions)
            if present is None:
                return ReconcileResult(plan.requeue_after)
            resource, plan = present, make_plan(present, observed)

        def replan(run: RunView, job: JobView | None) -> Plan[Status]:
            return make_plan(resource, observed.with_run(run, job))

        return await self._carry_out(resource, plan, replan)

    async def _add_finalizer(self, resource: ResourceT, actions: tuple[Action, ...]) -> ResourceT | None:
        """Add the finalizer; return the resource, or None if it changed so that it must be observed again."""
        for action in actions:
            await self._act(resource, action)
        present = self._ports.store.get(ResourceRef.of(resource))
        if not isinstance(present, type(resource)) or FINALIZER not in present.metadata.finalizers:
            return None
        before, after = resource.metadata, present.metadata
        unchanged = (before.uid, before.generation) == (after.uid, after.generation)
        return present if unchanged and after.deletion_timestamp is None else None

    async def _carry_out(
        self,
        resource: Resource,
        plan: Plan[Status],
        replan: Callable[[RunView, JobView | None], Plan[Status]],
    ) -> ReconcileResult:
        """Take the plan's actions and write the status; ``replan`` plans with a run that was just started."""
        ref, old = ResourceRef.of(resource), resource.status
        status, requeue_after, written = plan.status, plan.requeue_after, old
        started: RunView | None = None
        if resource.metadata.deletion_timestamp is not None and status != old:
            # Write it first: deleting may take long, and afterwards there is no object to write to.
            await self._write(resource, old, status)
            written = status
        try:
            for action in plan.actions:
                started = await self._act(resource, action) or started
            if started is not None:
                status = status.model_copy(update={"run_ref": started.id})
                next_plan = replan(started, await self._observer.job_of(started))
                if all(isinstance(action, Declare) for action in next_plan.actions):
                    # One status write shows both the start of the run and its state.
                    status, requeue_after = next_plan.status, next_plan.requeue_after
        except InvalidInput as error:
            if resource.metadata.deletion_timestamp is not None:
                raise  # the status shows why it stays instead
            logger.warning("%s: the control plane rejected it: %s", ref, error)
            status, requeue_after = (
                rejected_status(resource, status, error, self._ports.clock()),
                REJECTED_SECONDS,
            )
        if status != written:
            await self._write(resource, written, status)
        gone = any(isinstance(action, RemoveFinalizer) for action in plan.actions)
        return ReconcileResult(requeue_after, await self._affected(resource, old, status, gone=gone))

    async def _affected(
        self, resource: Resource, old: Status, new: Status, *, gone: bool
    ) -> tuple[ResourceRef, ...]:
        """Return the dependents of a Domain that changed, and what a deleted resource depended on."""
        below: list[ResourceRef] = []
        changed = (old.version, old.phase) != (new.version, new.phase)
        if isinstance(resource, Domain) and (gone or (changed and not _only_table_changed(old, new))):
            below = self._ports.store.dependents(resource.key)
        above = resource.parent_key if isinstance(resource, Domain) else resource.domain_key
        if not gone or above is None:
            return tuple(below)
        return (*below, ResourceRef.from_key("Domain", above))

    async def _write(self, resource: Resource, old: Status, new: Status) -> None:
        self._ports.require_leadership()
        await self._ports.store.write_status(ResourceRef.of(resource), resource.metadata.uid, new)
        self._on_status_change(resource, old, new)

    async def _write_deletion_delayed(self, ref: ResourceRef, uid: str, error: HmiError) -> None:
        """Write why a deletion cannot finish now; it is retried."""
        resource = self._ports.store.get(ref)
        if resource is not None and resource.metadata.uid == uid:
            new = delayed_status(resource, resource.status, error, self._ports.clock())
            await self._write(resource, resource.status, new)

    # --- actions ----------------------------------------------------------------------------------------

    async def _act(self, resource: Resource, action: Action) -> RunView | None:
        """Take one action as the leader; return the run that it started, if any."""
        self._ports.require_leadership()
        ref, uid = ResourceRef.of(resource), resource.metadata.uid
        logger.info("%s: %s, because %s", ref, type(action).__name__, action.why)
        match action:
            case AddFinalizer():
                await self._ports.store.add_finalizer(ref, uid, FINALIZER)
            case RemoveFinalizer():
                await self._ports.store.remove_finalizer(ref, uid, FINALIZER)
            case Declare():
                await self._declare(ref, action.record)
            case StartRun():
                return await self._start(action.request)
            case PublishAgainOrStartRun():
                return await self._publish_again_or_start(ref, action.request)
            case RestoreTable():
                await self._restore_table(resource, action.version)
            case ResumeRun():
                await self._resume(action.run_id)
            case StopRun():
                await self._ports.jobs.stop(action.run_id, ref.namespace)
                await self._ports.control_plane.fail_run(action.run_id, action.failure)
            case Revoke():
                await self._revoke(resource, action)
            case Restore():
                await self._ports.control_plane.restore(ref.key)
            case DeleteContents():
                await self._delete_contents(resource)
            case Withdraw():
                await self._delete_jobs(action.adapter)
                withdrawn = ResourceRef.of(action.adapter)
                await self._ports.control_plane.delete(withdrawn.kind, withdrawn.key)
        return None

    async def _declare(self, ref: ResourceRef, record: DomainRecord | AdapterRecord) -> None:
        """Write a resource to the catalog; create its tenant if the catalog does not know it."""

        try:
            await self._ports.control_plane.declare(ref.kind, ref.key, record)
        except InvalidInput as error:
            if error.reason != _UNKNOWN_TENANT:
                raise
            await self._ports.control_plane.ensure_tenant(await self._ports.store.tenant(ref.namespace))
            await self._ports.control_plane.declare(ref.kind, ref.key, record)

    async def _start(self, request: RunCreate) -> RunView:
        run = await self._ports.control_plane.create_run(request)
        if run.state in (RunState.PENDING, RunState.RUNNING):
            await self._ports.jobs.start(run)
        return run

    async def _resume(self, run_id: str) -> None:
        run = await self._ports.control_plane.run(run_id)
        if run is not None:
            await self._ports.jobs.start(run)

    async def _publish_again_or_start(self, ref: ResourceRef, request: RunCreate) -> RunView | None:
        wanted = PublishAgain(uid=request.uid, spec_digest=request.spec_digest)
        version = await self._ports.control_plane.publish_again(ref.kind, ref.key, wanted)
        if version is None:
            return await self._start(request)
        logger.info("%s: an earlier version of the same spec is published again as version %d", ref, version)
        return None

    async def _restore_table(self, resource: Resource, version: int) -> None:
        wanted = RestoreTableRequest(uid=resource.metadata.uid, version=version)
        ref = ResourceRef.of(resource)
        served = await self._ports.control_plane.restore_table(ref.key, wanted)
        if served is None:
            raise NotReady("ArtifactMissing", f"The table of version {version} of {ref} is not in the store.")
        logger.info("%s: version %d has the table of version %d", ref, served, version)

    # --- deletion ---------------------------------------------------------------------------------------

    async def _delete_contents(self, resource: Resource) -> None:
        """Delete what belongs to a resource. Raises ``HmiError`` as the ports do."""
        # Jobs first: a live one could publish into what is being deleted.
        await self._ports.jobs.delete_all(resource.metadata.uid, resource.metadata.namespace)
        if isinstance(resource, Domain):
            await self._delete_orphans_on(resource.key)
        ref = ResourceRef.of(resource)
        await self._ports.control_plane.delete(ref.kind, ref.key)
        if isinstance(resource, Domain):
            self._observer.domains.forget(resource.key)

    async def _revoke(self, resource: Resource, action: Revoke) -> None:
        """Revoke a TaskAdapter's use of its Domain; stop its training if its versions are withdrawn."""
        if action.revocation.withdraw:
            await self._delete_jobs(resource)
        await self._ports.control_plane.revoke(ResourceRef.of(resource).key, action.revocation)

    async def _delete_jobs(self, resource: Resource) -> None:
        """Delete a resource's Jobs if its namespace permits; the results of a Job that stays are rejected."""
        try:
            await self._ports.jobs.delete_all(resource.metadata.uid, resource.metadata.namespace)
        except HmiError as error:
            # Another tenant's namespace must not delay a deletion or a revocation.
            logger.warning("%s: its training Jobs were not deleted: %s", ResourceRef.of(resource), error)

    async def _delete_orphans_on(self, domain: DomainKey) -> None:
        """Delete catalog records on a Domain whose objects are gone: they would keep the Domain forever.

        The objects were deleted without a finalizer. Unlike other orphans they get no grace period: an object
        that is applied again finds no Domain.
        """
        async for orphan in find_orphans(self._ports, "TaskAdapter", domain=domain):
            ref = orphan.ref
            if await self._ports.store.is_absent(ref):
                self._ports.require_leadership()
                logger.info("%s: deleted from the catalog with its Domain; its object is gone", ref)
                await self._ports.control_plane.delete(ref.kind, ref.key, orphan.uid)


def _only_table_changed(old: Status, new: Status) -> bool:
    """Return whether a Domain's new version has the layers of the old one: its dependents do not change."""
    if not isinstance(new, DomainStatus) or new.refresh is None or old.phase != new.phase:
        return False
    kept = [table.version for table in new.refresh.tables]
    return old.version in kept and new.version in kept
