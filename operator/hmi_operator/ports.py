"""The ports of the reconciler: the resource store, the control plane's client and the training Jobs.

The store and the Jobs have one implementation for Kubernetes and one for a single machine. The client is
``hmi_api.internal.client``'s on both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from hmi_api.internal.client import ControlPlaneClient
from hmi_api.internal.runs import RunView
from hmi_api.names import DomainKey, KindName, Tenant
from hmi_api.resources.kinds import Resource
from hmi_operator.planning.actions import Status
from hmi_operator.planning.observed import JobView


@dataclass(frozen=True)
class ResourceRef:
    """The kind, namespace and name of a resource."""

    kind: KindName
    namespace: str
    name: str

    @classmethod
    def of(cls, resource: Resource) -> "ResourceRef":
        """Return the reference to a resource."""
        return cls(resource.kind, resource.metadata.namespace, resource.metadata.name)

    @classmethod
    def from_key(cls, kind: KindName, key: str) -> "ResourceRef":
        """Return the reference to ``namespace/name``."""
        namespace, _, name = key.partition("/")
        return cls(kind, namespace, name)

    @classmethod
    def of_run(cls, run: RunView) -> "ResourceRef":
        """Return the reference to the resource that a run is for."""
        kind: KindName = "Domain" if run.spec.kind == "domain" else "TaskAdapter"
        return cls(kind, run.spec.namespace, run.spec.name)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class ResourceStore(Protocol):
    """Where resources are declared: a Kubernetes API server, or files."""

    def get(self, ref: ResourceRef) -> Resource | None:
        """Return a resource from memory, or None."""
        ...

    async def tenant(self, namespace: str) -> Tenant:
        """Return the tenant of a namespace."""
        ...

    def dependents(self, domain: DomainKey) -> list[ResourceRef]:
        """Return the TaskAdapters and child Domains that name this Domain, by an index."""
        ...

    def count(self) -> int:
        """Return how many resources there are."""
        ...

    async def identity(self) -> str:
        """Return a unique id of this store: on Kubernetes the uid of the namespace ``kube-system``."""
        ...

    def covers(self, namespace: str) -> bool:
        """Return whether this operator reconciles the resources of a namespace."""
        ...

    async def is_absent(self, ref: ResourceRef) -> bool:
        """Return whether the store itself, not a cache, has no resource of that name.

        Raises ``HmiError`` if the store does not answer: a failure is never an absence.
        """
        ...

    def was_deleted(self, uid: str) -> bool:
        """Return whether the deletion of the object with that uid was observed recently."""
        ...

    async def write_status(self, ref: ResourceRef, uid: str, status: Status) -> None:
        """Replace the status of the resource with that uid; do nothing if it is gone."""
        ...

    async def add_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Add a finalizer; do nothing if the resource is gone or has it."""
        ...

    async def remove_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Remove a finalizer; a resource that is being deleted disappears with its last one."""
        ...


class TrainingJobs(Protocol):
    """The Jobs of training runs: Kubernetes Jobs, or subprocesses."""

    async def start(self, run: RunView) -> None:
        """Start a run's Job, or queue it; do nothing if it is alive."""
        ...

    async def observe(self, run: RunView) -> JobView | None:
        """Return a run's Job; None if it never had one here."""
        ...

    async def stop(self, run_id: str, namespace: str) -> None:
        """Stop a run's Job in that namespace, if there is one, and wait until it is gone."""
        ...

    async def delete_all(self, uid: str, namespace: str) -> None:
        """Delete the Jobs and work files of all runs of the resource with that uid; idempotent."""
        ...


@dataclass(frozen=True)
class Ports:
    """What the reconciler reads from and writes to."""

    store: ResourceStore
    control_plane: ControlPlaneClient
    jobs: TrainingJobs
    require_leadership: Callable[[], None] = lambda: None
    """Called before each change. Raises ``NotReady`` if this replica is not the leader."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    """Returns the present time with its time zone."""
