"""What a runtime has loaded: Domain versions and adapter versions, as rows of a request use them."""

from dataclasses import dataclass

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.runtimes import AdapterServing
from hmi_api.resources.task_adapter import TaskType
from hmi_api.tag_schemes import TagScheme
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.tiers import TieredTable


@dataclass(frozen=True)
class EngineKey:
    """Base model and split of an engine; rows with equal keys may share a batch."""

    base_digest: str
    split: int


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedDomain:
    """One loaded version of a Domain. Compared by identity: a new version is a new object."""

    key: str
    version: int
    lookup: TreeLookup
    tables: tuple[TieredTable, ...] = ()
    """The tables of ``lookup``, where they share a runtime's memory."""

    @property
    def layers(self) -> DomainLayers:
        """Its lower layers, positions and bridge."""
        return self.lookup.layers

    @property
    def layers_digest(self) -> str:
        """Digest of the artifact of ``layers``."""
        return self.lookup.layers_digest


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """One version of an adapter that passed its checks, bound to its engine and its Domain."""

    id: AdapterId
    engine: EngineKey
    domain: LoadedDomain
    task: TaskType
    labels: tuple[str, ...]
    artifact: ArtifactRef
    tag_scheme: TagScheme | None = None
    """Of a token classifier: how its labels mark where entities begin and end."""
    tenant_id: str = ""
    """The owner's id; empty if the control plane is older than the field."""
    pinned: bool = False

    def is_valid_on(self, adapter: AdapterServing, domain: LoadedDomain) -> bool:
        """Return whether this is the desired version, checked before on the layers of ``domain``."""
        return (
            self.id == AdapterId.of(adapter)
            and self.artifact == adapter.artifact
            and (self.task, self.labels) == (adapter.task_type, tuple(adapter.labels))
            and self.tenant_id == adapter.tenant_id
            and self.domain.key == domain.key
            and self.domain.layers_digest == domain.layers_digest
        )
