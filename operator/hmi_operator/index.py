"""The index from Domains to their dependents."""

from collections import defaultdict

from hmi_api.names import DomainKey
from hmi_api.resources.domain import Domain
from hmi_api.resources.kinds import Resource
from hmi_operator.ports import ResourceRef


class DependentsIndex:
    """TaskAdapters and child Domains by the Domain that they name; changes take constant time."""

    def __init__(self) -> None:
        self._dependents: dict[DomainKey, set[ResourceRef]] = defaultdict(set)
        self._domain_of: dict[ResourceRef, DomainKey] = {}

    def put(self, resource: Resource) -> None:
        """Add a resource, or move it to the Domain that it names now."""
        ref = ResourceRef.of(resource)
        self.remove(ref)
        key = resource.parent_key if isinstance(resource, Domain) else resource.domain_key
        if key is not None:
            self._domain_of[ref] = key
            self._dependents[key].add(ref)

    def remove(self, ref: ResourceRef) -> None:
        """Remove a resource."""
        key = self._domain_of.pop(ref, None)
        if key is None:
            return
        self._dependents[key].discard(ref)
        if not self._dependents[key]:
            del self._dependents[key]

    def dependents(self, key: DomainKey) -> list[ResourceRef]:
        """Return the dependents of a Domain, sorted."""
        return sorted(self._dependents.get(key, ()), key=str)
