"""The kinds of object that the operator deals with, and where an API server has them."""

from dataclasses import dataclass

from hmi_api.names import GROUP, VERSION, KindName


@dataclass(frozen=True)
class Kind:
    """A kind of object: its API group ("" for the core), version, plural and name."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """``group/version``, as a manifest has it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """Return the path of an object, or of all; ``namespace`` is absent for those of every namespace."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        within = f"/namespaces/{namespace}" if namespace else ""
        parts = [part for part in (self.plural, name, subresource) if part]
        return f"{root}{within}/{'/'.join(parts)}"


DOMAINS = Kind(GROUP, VERSION, "domains", "Domain")
TASK_ADAPTERS = Kind(GROUP, VERSION, "taskadapters", "TaskAdapter")
NAMESPACES = Kind("", "v1", "namespaces", "Namespace")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
JOBS = Kind("batch", "v1", "jobs", "Job")
PODS = Kind("", "v1", "pods", "Pod")
CLAIMS = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
NETWORK_POLICIES = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
EVENTS = Kind("events.k8s.io", "v1", "events", "Event")

RESOURCES: dict[KindName, Kind] = {"Domain": DOMAINS, "TaskAdapter": TASK_ADAPTERS}
