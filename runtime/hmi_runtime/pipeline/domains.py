"""Domains as an engine serves them: their layers, and the tables in front of those."""

from dataclasses import dataclass

from hmi_runtime.model import DomainLayers
from hmi_runtime.plot import TreeLookup


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ServedDomain:
    """One loaded version of a Domain. Compared by identity: a new version is a new object."""

    key: str
    version: int
    lookup: TreeLookup

    @property
    def layers(self) -> DomainLayers:
        """Its lower layers, positions and bridge."""
        return self.lookup.layers

    @property
    def layers_digest(self) -> str:
        """Digest of those layers' artifact."""
        return self.lookup.layers_digest
