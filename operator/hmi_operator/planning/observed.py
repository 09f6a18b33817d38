"""The observed observed that a plan is made from: state, gathered by the engine, never changed."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hmi_api.internal.catalog import GRACE, AdapterView, DomainVersionView, DomainView
from hmi_api.internal.runs import RunPod, RunView
from hmi_api.names import DomainKey, Tenant
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.data_addresses import CLUSTER_SCHEMES
from hmi_api.resources.domain import Domain
from hmi_api.security.address_policy import AddressPolicy
from hmi_operator.planning.dependents import Dependent


@dataclass(frozen=True)
class Environment:
    """What can be done where training and serving run."""

    schemes: frozenset[str] | None = None
    """Schemes of addresses that a training process can read, paths not among them; None for any address."""
    excluded: frozenset[str] = frozenset()
    """Namespaces in which nothing is made: the cluster's and the installation's own."""
    limits: AdapterLimits | None = None
    """The largest adapters that the runtimes serve; None where that is not known."""
    addresses: AddressPolicy = field(default_factory=lambda: AddressPolicy(own_machine=True))
    """Hosts that addresses may lead to."""
    revocation_grace: timedelta = GRACE
    """How long a TaskAdapter of another namespace is served that may not stand on its Domain any more."""


CLUSTER = Environment(CLUSTER_SCHEMES, addresses=AddressPolicy())


@dataclass(frozen=True)
class PodProblem:
    """Why a training process does not run, or died: a condition's reason and message."""

    reason: str
    message: str
    final: bool = False
    """Whether trying again as things stand is of no use."""


@dataclass(frozen=True)
class JobView:
    """The process that does a training run, as far as this machine or cluster knows it."""

    alive: bool
    """Running, or queued to run."""
    crashes: int = 0
    """Times it ended while its run had not."""
    ended_at: datetime | None = None
    """When it last ended."""
    queued: bool = False
    """Alive only in that it waits for its turn."""
    problem: PodProblem | None = None
    """What keeps it from running, or why it died last, where that is known."""
    pods: tuple[RunPod, ...] = ()
    """Its pods, which the control plane is told of; none on one machine."""


@dataclass(frozen=True)
class DomainDependency:
    """A Domain that a resource stands on: its parent, or a TaskAdapter's Domain."""

    key: DomainKey
    domain: Domain | None
    """None when no such Domain is declared."""
    current: DomainVersionView | None = None
    """Its published version."""


@dataclass(frozen=True)
class ObservedDomain:
    """What a Domain's plan depends on.

    ``run`` must have been read before ``view``: a run that has succeeded is then sure to show its version.
    """

    now: datetime
    tenant: Tenant
    view: DomainView | None = None
    run: RunView | None = None
    job: JobView | None = None
    parent: DomainDependency | None = None
    lineage: tuple[DomainKey, ...] = ()
    """Keys from this Domain upwards, to the root, a missing one, or the first that comes again."""
    dependents: tuple[Dependent, ...] = ()
    """What names this Domain where it is being deleted, else some of what it is not shared with."""
    environment: Environment = Environment()


@dataclass(frozen=True)
class ObservedAdapter:
    """What a TaskAdapter's plan depends on; ``run`` must have been read before ``view``."""

    now: datetime
    tenant: Tenant
    domain: DomainDependency
    view: AdapterView | None = None
    run: RunView | None = None
    job: JobView | None = None
    environment: Environment = Environment()
