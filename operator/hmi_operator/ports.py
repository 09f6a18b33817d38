"""The ports through which the engine sees and changes the world; each has an end per place it runs in."""

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
    """Names a resource of HMI."""

    kind: KindName
    namespace: str
    name: str

    @classmethod
    def of(cls, resource: Domain | TaskAdapter) -> "ResourceRef":
        """Return the name of a resource."""
        return cls(resource.kind, resource.metadata.namespace, resource.metadata.name)

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
        """Return what tells this store from every other: the uid of a cluster's namespace ``kube-system``."""
        ...

    def covers(self, namespace: str) -> bool:
        """Say whether the resources of a namespace are looked after here."""
        ...

    async def is_absent(self, ref: ResourceRef) -> bool:
        """Ask where resources are kept whether there is none of that name now.

        Raises ``HmiError`` where that cannot be told: a failure is never an absence.
        """
        ...

    def was_deleted(self, uid: str) -> bool:
        """Say whether the deletion of the object with that uid was seen here not long ago."""
        ...

    async def write_status(
        self, ref: ResourceRef, uid: str, status: DomainStatus | TaskAdapterStatus
    ) -> None:
        """Replace the status of the resource with that uid; nothing happens when it is gone."""
        ...

    async def add_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Hold the resource; nothing happens when it is gone or held already."""
        ...

    async def remove_finalizer(self, ref: ResourceRef, uid: str, finalizer: str) -> None:
        """Let the resource go; one that is being deleted and has no finalizer left disappears."""
        ...


class ControlPlane(Protocol):
    """The control plane's internal API, as far as reconciliation needs it.

    All raise ``InvalidInput`` when what is declared is refused and ``NotReady`` when it does not answer.
    """

    async def ensure_tenant(self, tenant: Tenant) -> None:
        """Make the tenant known."""
        ...

    async def declare_domain(self, key: str, record: DomainRecord) -> None:
        """Tell the catalog of a Domain."""
        ...

    async def declare_adapter(self, key: str, record: AdapterRecord) -> None:
        """Tell the catalog of a TaskAdapter."""
        ...

    async def domain(self, key: str) -> DomainView | None:
        """Return a Domain as the catalog knows it, or None."""
        ...

    async def adapter(self, key: str) -> AdapterView | None:
        """Return a TaskAdapter as the catalog knows it, or None."""
        ...

    async def adapter_etags(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the ETags of TaskAdapters by key, of those known; at most ``MAX_ETAGS`` keys."""
        ...

    async def erase_domain(self, key: str, uid: str | None = None) -> None:
        """Erase a Domain's versions and artifacts, with ``uid`` only those of that object; idempotent."""
        ...

    async def erase_adapter(self, key: str, uid: str | None = None) -> None:
        """Erase a TaskAdapter's versions, artifacts and placements, as ``erase_domain`` does; idempotent."""
        ...

    async def revoke(self, key: str, revocation: Revocation) -> None:
        """Say that a TaskAdapter may not stand on its Domain any more; nothing happens when it is gone."""
        ...

    async def restore(self, key: str) -> None:
        """Say that a TaskAdapter may stand on its Domain again; nothing happens when it is gone."""
        ...

    async def claim(self, cluster: str) -> ClusterClaimed | None:
        """Say that this cluster's operator works on the catalog; None where the catalog has no such call.

        Raises ``InvalidInput`` OtherCluster while another cluster's operator does.
        """
        ...

    async def declared(
        self, kind: KindName, cursor: str | None = None, *, domain: DomainKey | None = None
    ) -> DeclaredPage:
        """Return a page of what the catalog has of a kind; of TaskAdapters, those on one Domain if given."""
        ...

    async def publish_again(self, kind: KindName, key: str, wanted: PublishAgain) -> int | None:
        """Publish the version again that was made from the declared spec; return its number, if any."""
        ...

    async def create_run(self, request: RunCreate) -> RunView:
        """Create a run; the same uid, digest and attempt give the same run."""
        ...

    async def run(self, run_id: str) -> RunView | None:
        """Return a run, or None."""
        ...

    async def note_pods(self, run_id: str, pods: Sequence[RunPod]) -> None:
        """Say which pods work on a run; nothing happens when it is gone."""
        ...

    async def fail_run(self, run_id: str, failure: RunFailure) -> None:
        """Record that a run ended without a result; nothing happens when it has ended already."""
        ...


class TrainingJobs(Protocol):
    """Processes that do training runs: Kubernetes Jobs, or subprocesses."""

    async def start(self, run: RunView) -> None:
        """Start the run's process, or queue it; nothing happens when it is alive."""
        ...

    async def observe(self, run: RunView) -> JobView | None:
        """Return what is known of the run's process; None when it never had one here."""
        ...

    async def stop(self, run_id: str, namespace: str) -> None:
        """End a run's process, which is of that namespace, and wait until it is gone; it may have none."""
        ...

    async def erase(self, uid: str, namespace: str) -> None:
        """Stop the processes of the runs of a namespace's resource and erase their work files; idempotent."""
        ...
