"""What a plan depends on: collected by the operator before planning, never changed."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from hmi_api.internal.catalog import (
    GRACE,
    AdapterVersionView,
    AdapterView,
    DomainVersionView,
    DomainView,
)
from hmi_api.internal.refreshes import Refreshes
from hmi_api.internal.runs import DomainRunSpec, RunPod, RunView
from hmi_api.names import DomainKey, Tenant
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.data_addresses import CLUSTER_SCHEMES
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_api.security.address_policy import AddressPolicy


@dataclass(frozen=True)
class Environment:
    """What training and serving support where they run."""

    schemes: frozenset[str] | None = None
    """URI schemes that a trainer can read, besides plain paths; None for all."""
    excluded: frozenset[str] = frozenset()
    """Namespaces in which nothing is created: the cluster's and the installation's own."""
    limits: AdapterLimits | None = None
    """The largest adapters that runtimes serve; None if unknown."""
    addresses: AddressPolicy = field(default_factory=lambda: AddressPolicy(own_machine=True))
    """Hosts that data addresses may name."""
    revocation_grace: timedelta = GRACE
    """How long a TaskAdapter of another namespace is served after it lost access to its Domain."""


CLUSTER = Environment(CLUSTER_SCHEMES, addresses=AddressPolicy())


@dataclass(frozen=True)
class PodProblem:
    """Why a trainer pod does not run, or failed: a condition's reason and message."""

    reason: str
    message: str
    final: bool = False
    """Whether a retry without a change is useless."""


@dataclass(frozen=True)
class JobView:
    """The Job or subprocess of a training run."""

    alive: bool
    """Running or queued."""
    crashes: int = 0
    """How often it ended while its run had not."""
    ended_at: datetime | None = None
    """When it last ended."""
    queued: bool = False
    """Alive, but not started yet."""
    problem: PodProblem | None = None
    """What keeps it from running, or why it last failed, if known."""
    pods: tuple[RunPod, ...] = ()
    """Its pods, which may report on the run; none on one machine."""


@dataclass(frozen=True)
class DomainDependency:
    """A Domain that a resource depends on: its parent, or a TaskAdapter's Domain."""

    key: DomainKey
    domain: Domain | None
    """None if no such Domain is declared."""
    current: DomainVersionView | None = None
    """Its published version."""


@dataclass(frozen=True)
class Dependent:
    """A resource that names a Domain."""

    resource: Resource
    view: DomainView | AdapterView | None = None
    """The catalog's view of it."""
    view_read: bool = True
    """Whether the view was read; not if another dependent blocks the deletion anyway."""

    def __str__(self) -> str:
        metadata = self.resource.metadata
        return f"{self.resource.kind} {metadata.namespace}/{metadata.name}"


@dataclass(frozen=True, kw_only=True)
class _Observed:
    """What the plans of both kinds depend on."""

    now: datetime
    tenant: Tenant
    run: RunView | None = None
    job: JobView | None = None
    environment: Environment = Environment()


@dataclass(frozen=True, kw_only=True)
class ObservedDomain(_Observed):
    """What a Domain's plan depends on.

    Read ``run`` before ``view``: then the view has the version of a run that succeeded.
    """

    view: DomainView | None = None
    refreshes: Refreshes | None = None
    """Its kept tables and last refresh run, if its plan may depend on them and the control plane has them."""
    refresh_run: RunView | None = None
    """The last refresh run, while it is active, or failed."""
    refresh_job: JobView | None = None
    parent: DomainDependency | None = None
    lineage: tuple[DomainKey, ...] = ()
    """Keys of the Domain and its parents, to the root, a missing one or the first that repeats."""
    dependents: tuple[Dependent, ...] = ()
    """While the Domain is deleted, what names it; else some TaskAdapters that it is not shared with."""

    @property
    def current(self) -> DomainVersionView | None:
        """The published version."""
        return self.view.current if self.view else None

    def with_run(self, run: RunView, job: JobView | None) -> "ObservedDomain":
        """Return a copy with a run that was just started: a training run or a refresh run."""
        if is_refresh(run):
            return replace(self, refresh_run=run, refresh_job=job)
        return replace(self, run=run, job=job)


@dataclass(frozen=True, kw_only=True)
class ObservedAdapter(_Observed):
    """What a TaskAdapter's plan depends on; read ``run`` before ``view``."""

    domain: DomainDependency
    view: AdapterView | None = None

    @property
    def current(self) -> AdapterVersionView | None:
        """The published version."""
        return self.view.current if self.view else None

    def with_run(self, run: RunView, job: JobView | None) -> "ObservedAdapter":
        """Return a copy with a run that was just started."""
        return replace(self, run=run, job=job)


def is_refresh(run: RunView) -> bool:
    """Return whether a run refreshes a table, and trains nothing."""
    return isinstance(run.spec, DomainRunSpec) and run.spec.refresh is not None
