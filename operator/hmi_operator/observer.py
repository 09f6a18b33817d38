"""What the operator reads about a resource before planning: from the store, the catalog and its Job."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from hmi_api.internal.catalog import AdapterView, DomainView
from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.refreshes import Refreshes
from hmi_api.internal.runs import RUN_ID, RunPod, RunState, RunView
from hmi_api.names import DomainKey
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.planning import (
    Dependent,
    DomainDependency,
    Environment,
    JobView,
    ObservedAdapter,
    ObservedDomain,
)
from hmi_operator.planning.deletion import blocks_deletion, may_depend_on
from hmi_operator.planning.observed import is_refresh
from hmi_operator.planning.refresh import wants_refreshes
from hmi_operator.planning.training import is_run_of
from hmi_operator.planning.validation import lineage_of
from hmi_operator.ports import Ports, ResourceRef

DOMAIN_CACHE_SECONDS = 5.0
_RECORDED_RUNS = 10_000
"""Runs for which the last recorded pods are remembered."""
_SHOWN_UNSHARED = 10
"""TaskAdapters without access that are read for a Domain's status."""


@dataclass(frozen=True, slots=True)
class _CachedDomain:
    """A Domain's view, None if the catalog had none, and when it was requested (seconds)."""

    requested_at: float
    view: DomainView | None


class DomainCache:
    """Reads Domains from the catalog, and caches each for the many TaskAdapters that depend on it.

    Dependents are planned from a view that may be ``DOMAIN_CACHE_SECONDS`` old. They miss no change: a
    Domain's own plan reads a new view into this cache before it enqueues the dependents. For use in one event
    loop.
    """

    def __init__(
        self, control_plane: ControlPlaneClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._control_plane = control_plane
        self._clock = clock
        self._cached: dict[DomainKey, _CachedDomain] = {}

    async def read(self, key: DomainKey) -> DomainView | None:
        """Read a Domain from the catalog; None if it has none. Raises ``HmiError`` as the client does."""
        requested_at = self._clock()
        view = await self._control_plane.domain(key)
        cached = self._cached.get(key)
        if cached is None or cached.requested_at <= requested_at:  # else a later request was answered first
            self._cached[key] = _CachedDomain(requested_at, view)
        return view

    async def get(self, key: DomainKey) -> DomainView | None:
        """Return a Domain from the cache, or read it."""
        cached = self._cached.get(key)
        if cached is not None and self._clock() - cached.requested_at < DOMAIN_CACHE_SECONDS:
            return cached.view
        return await self.read(key)

    def forget(self, key: DomainKey) -> None:
        """Drop a Domain that was deleted."""
        self._cached.pop(key, None)


class Observer:
    """Collects what the plan of a resource depends on.

    ``on_adapter_view`` is called with the key and the view of each TaskAdapter that was read from the
    catalog. If the catalog has a deleted object of the same name, its entry is deleted first.
    """

    def __init__(
        self,
        ports: Ports,
        environment: Environment,
        on_adapter_view: Callable[[str, AdapterView | None], None],
    ) -> None:
        self._ports = ports
        self._environment = environment
        self._on_adapter_view = on_adapter_view
        self._recorded_pods: LRUCache[str, tuple[RunPod, ...]] = LRUCache(_RECORDED_RUNS)
        self.domains = DomainCache(ports.control_plane)

    async def observe_domain(self, domain: Domain) -> ObservedDomain:
        """Return what a Domain's plan depends on. Raises ``HmiError`` as the ports do."""
        run = await self._run_of(domain)  # before the view, which then has what the run published
        refreshes, refresh_run = await self._refreshes_of(domain, run)
        if run is not None and is_refresh(run):
            run = None
        job = await self.job_of(run)
        view = await self.domains.read(domain.key)
        if view is not None and self._is_of_deleted(domain, view):
            self._ports.require_leadership()
            await self._ports.control_plane.delete("Domain", domain.key, view.record.uid)
            view = await self.domains.read(domain.key)
        lineage = lineage_of(domain, self._find_domain)
        deleted = domain.metadata.deletion_timestamp is not None
        return ObservedDomain(
            now=self._ports.clock(),
            tenant=await self._ports.store.tenant(domain.metadata.namespace),
            view=view,
            run=run,
            job=job,
            refreshes=refreshes,
            refresh_run=refresh_run,
            refresh_job=await self.job_of(refresh_run),
            parent=await self._dependency(domain.parent_key) if domain.parent_key else None,
            lineage=lineage,
            dependents=await (self._dependents(domain, lineage) if deleted else self._unshared(domain)),
            environment=self._environment,
        )

    async def _refreshes_of(
        self, domain: Domain, run: RunView | None
    ) -> tuple[Refreshes | None, RunView | None]:
        """Return a Domain's tables, and its last refresh run if that has not succeeded.

        ``run`` is the one that the status names. For a Domain that is not refreshed nothing is read.
        """
        if not wants_refreshes(domain) and not (run is not None and is_refresh(run)):
            return None, None
        found = await self._ports.control_plane.refreshes(domain.key)
        last = found.last_run if found is not None else None
        if last is None or last.state == RunState.SUCCEEDED:
            return found, None
        if run is None or run.id != last.run_id:
            run = await self._ports.control_plane.run(last.run_id)
        return found, run if run is not None and is_run_of(run, domain) else None

    async def observe_adapter(self, adapter: TaskAdapter) -> ObservedAdapter:
        """Return what a TaskAdapter's plan depends on. Raises ``HmiError`` as the ports do."""
        run = await self._run_of(adapter)
        job = await self.job_of(run)
        key = ResourceRef.of(adapter).key
        view = await self._ports.control_plane.adapter(key)
        if view is not None and self._is_of_deleted(adapter, view):
            self._ports.require_leadership()
            await self._ports.control_plane.delete("TaskAdapter", key, view.record.uid)
            view = await self._ports.control_plane.adapter(key)
        self._on_adapter_view(key, view)
        return ObservedAdapter(
            now=self._ports.clock(),
            tenant=await self._ports.store.tenant(adapter.metadata.namespace),
            domain=await self._dependency(adapter.domain_key),
            view=view,
            run=run,
            job=job,
            environment=self._environment,
        )

    async def job_of(self, run: RunView | None) -> JobView | None:
        """Return a run's Job; None if there is no run, or no Job of it was ever seen here.

        Records the Job's pods in the control plane when they change: only those pods may report on the run.
        """
        job = await self._ports.jobs.observe(run) if run is not None else None
        if run is not None and job is not None and job.pods and self._recorded_pods.get(run.id) != job.pods:
            await self._ports.control_plane.record_pods(run.id, job.pods)
            self._recorded_pods[run.id] = job.pods
        return job

    async def _run_of(self, resource: Resource) -> RunView | None:
        """Return the run that the status names, if it was made for this very object.

        The status is not trusted: its author could name another tenant's run. If it is lost or wrong, the
        plan requests the run again and the control plane returns the existing one.
        """
        run_id = resource.status.run_ref
        if run_id is None or not re.fullmatch(RUN_ID, run_id):
            return None
        run = await self._ports.control_plane.run(run_id)
        return run if run is not None and is_run_of(run, resource) else None

    def _is_of_deleted(self, resource: Resource, view: DomainView | AdapterView) -> bool:
        """Return whether the catalog's entry is of an earlier object of this name that was deleted."""
        uid = view.record.uid
        return uid != resource.metadata.uid and self._ports.store.was_deleted(uid)

    async def _dependency(self, key: DomainKey) -> DomainDependency:
        domain = self._find_domain(key)
        if domain is None:
            return DomainDependency(key, None)
        view = await self.domains.get(key)
        return DomainDependency(key, domain, view.current if view else None)

    def _find_domain(self, key: DomainKey) -> Domain | None:
        found = self._ports.store.get(ResourceRef.from_key("Domain", key))
        return found if isinstance(found, Domain) else None

    async def _dependents(self, domain: Domain, lineage: tuple[DomainKey, ...]) -> tuple[Dependent, ...]:
        """Return what names a Domain that is being deleted.

        Once one dependent blocks the deletion, the views of others that may depend on the Domain are not
        read: there may be thousands.
        """
        found: list[Dependent] = []
        blocked = False
        for ref in self._ports.store.dependents(domain.key):
            resource = self._ports.store.get(ref)
            if resource is None:
                continue
            if blocked and may_depend_on(domain, resource, lineage):
                found.append(Dependent(resource, view_read=False))
                continue
            found.append(Dependent(resource, await self._read_view(resource)))
            blocked = blocked or blocks_deletion(domain, found[-1], lineage)
        return tuple(found)

    async def _unshared(self, domain: Domain) -> tuple[Dependent, ...]:
        """Return some of the TaskAdapters that name a Domain which is not shared with their namespace."""
        refs = [
            ref
            for ref in self._ports.store.dependents(domain.key)
            if ref.kind == "TaskAdapter" and not domain.is_shared_with(ref.namespace)
        ]
        found = [self._ports.store.get(ref) for ref in refs[:_SHOWN_UNSHARED]]
        return tuple([Dependent(one, await self._read_view(one)) for one in found if one is not None])

    async def _read_view(self, resource: Resource) -> DomainView | AdapterView | None:
        if isinstance(resource, Domain):
            return await self.domains.read(resource.key)
        return await self._ports.control_plane.adapter(ResourceRef.of(resource).key)
