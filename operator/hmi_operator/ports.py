"""The ports of the reconciler: resources, the control plane and training Jobs.

The first and the last have one implementation for Kubernetes and one for a single machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from hmi_api.internal.catalog import (
    AdapterRecord,
    AdapterView,
    ClusterClaimed,
    DeclaredPage,
    DomainRecord,
    DomainView,
    PublishAgain,
    Revocation,
)
from hmi_api.internal.runs import RunCreate, RunFailure, RunPod, RunView
from hmi_api.names import DomainKey, KindName, Tenant
from hmi_api.resources.domain import Domain, DomainStatus
from hmi_api.resources.task_adapter import TaskAdapter, TaskAdapterStatus
from hmi_operator.planning.observed import JobView

ResourceT = TypeVar("ResourceT", Domain, TaskAdapter)


@dataclass(frozen=True)
class ResourceRef:
    """The kind, namespace and name of a resource."""

    kind: KindName
    namespace: str
    name: str

    @classmethod
    def of(cls, resource: Domain | TaskAdapter) -> "ResourceRef":
        """Return the reference to a resource."""
        return cls(resource.kind, resource.metadata.namespace, resource.metadata.name)

    @classmethod
    def from_key(cls, kind: KindName, key: str) -> "ResourceRef":
        """Return the reference to ``namespace/name``."""
        namespace, _, name = key.partition("/")
        return cls(kind, namespace, name)

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class ResourceStore(Protocol):
    """Where resources are declared: a Kubernetes API server, or files."""

    async def get(self, ref: ResourceRef) -> Domain | TaskAdapter | None:
        """Return a resource, or None."""
        ...

    def find(self, ref: ResourceRef) -> Domain | TaskAdapter | None:
        """Return a resource from memory, or None."""
        ...

    async def tenant(self, namespace: str) -> Tenant:
        """Return the tenant of a namespace."""
        ...

    async def dependents(self, domain: DomainKey) -> list[ResourceRef]:
        """Return the TaskAdapters and child Domains that name this Domain, by an index."""
        ...

    async def count(self) -> int:
        """Return how many resources there are."""
        ...

    async def identity(self) -> str:
        """Return a unique id of this store: on Kubernetes the uid of the namespace ``kube-system``."""
        ...

    def covers(self, namespace: str) -> bool:
        """Return whether this operator reconciles the resources of a namespace."""
        ...

    async def is_absent(self, ref: ResourceRef) -> bool:
        """Ask the store itself, not a cache, whether there is no resource of that name.

        Raises ``HmiError`` if the store does not answer: a failure is never an absence.
        """
        ...

    def was_deleted(self, uid: str) -> bool:
        """Return whether the deletion of the object with that uid was observed recently."""
        ...

    async def write_status(
        self, ref: ResourceRef, uid: str, status: DomainStatus | TaskAdapterStatus
    ) -> None:
        """Replace the status of the resource with that uid; do nothing if it is gone."""
        ...

    async def add_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Add a finalizer; do nothing if the resource is gone or has it."""
        ...

    async def remove_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Remove a finalizer; a resource that is being deleted disappears with its last one."""
        ...


class ControlPlane(Protocol):
    """The control plane's internal API, as far as reconciliation needs it.

    All raise ``InvalidInput`` if the control plane rejects a request and ``NotReady`` if it does not answer.
    """

    async def ensure_tenant(self, tenant: Tenant) -> None:
        """Create the tenant if it is new."""
        ...

    async def declare_domain(self, key: str, record: DomainRecord) -> None:
        """Create or update a Domain in the catalog."""
        ...

    async def declare_adapter(self, key: str, record: AdapterRecord) -> None:
        """Create or update a TaskAdapter in the catalog."""
        ...

    async def domain(self, key: str) -> DomainView | None:
        """Return a Domain as the catalog has it, or None."""
        ...

    async def adapter(self, key: str) -> AdapterView | None:
        """Return a TaskAdapter as the catalog has it, or None."""
        ...

    async def adapter_etags(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the ETags of TaskAdapters by key, without unknown ones; at most ``MAX_ETAGS`` keys."""
        ...

    async def erase_domain(self, key: str, uid: str | None = None) -> None:
        """Delete a Domain with its versions and artifacts; with ``uid``, only if it is of that object."""
        ...

    async def erase_adapter(self, key: str, uid: str | None = None) -> None:
        """Delete a TaskAdapter with its versions, artifacts and placements; ``uid`` as for a Domain."""
        ...

    async def revoke(self, key: str, revocation: Revocation) -> None:
        """Revoke a TaskAdapter's use of its Domain; do nothing if the TaskAdapter is gone."""
        ...

    async def restore(self, key: str) -> None:
        """Take back a revocation; do nothing if the TaskAdapter is gone."""
        ...

    async def claim(self, cluster: str) -> ClusterClaimed | None:
        """Claim the catalog for this cluster; None if the control plane is too old to know the call.

        Raises ``InvalidInput`` OtherCluster if the catalog belongs to another cluster.
        """
        ...

    async def declared(
        self, kind: KindName, cursor: str | None = None, *, domain: DomainKey | None = None
    ) -> DeclaredPage:
        """List a page of the resources in the catalog; of TaskAdapters only those on ``domain``, if given."""
        ...

    async def publish_again(self, kind: KindName, key: str, wanted: PublishAgain) -> int | None:
        """Publish the earlier version of the same spec again; return its new number, None if none is left."""
        ...

    async def create_run(self, request: RunCreate) -> RunView:
        """Create a run; the same uid, digest and attempt give the same run."""
        ...

    async def run(self, run_id: str) -> RunView | None:
        """Return a run, or None."""
        ...

    async def note_pods(self, run_id: str, pods: Sequence[RunPod]) -> None:
        """Record the pods of a run's Job; do nothing if the run is gone."""
        ...

    async def fail_run(self, run_id: str, failure: RunFailure) -> None:
        """Record that a run ended without a result; do nothing if it has ended."""
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

    async def erase(self, uid: str, namespace: str) -> None:
        """Delete the Jobs and work files of all runs of the resource with that uid; idempotent."""
        ...
