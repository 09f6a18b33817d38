"""The index from a Domain to what stands on it, kept as resources come and go."""

from collections import defaultdict

from hmi_api.names import DomainKey
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.ports import ResourceRef


class DependentsIndex:
    """TaskAdapters and child Domains by the Domain that they name; each change costs the same at any size."""

    def __init__(self) -> None:
        self._below: dict[DomainKey, set[ResourceRef]] = defaultdict(set)
        self._above: dict[ResourceRef, DomainKey] = {}

    def put(self, resource: Domain | TaskAdapter) -> None:
        """Enter a resource, or move it to the Domain that it names now."""
        ref = ResourceRef.of(resource)
        self.remove(ref)
        key = resource.parent_key if isinstance(resource, Domain) else resource.domain_key
        if key is not None:
            self._above[ref] = key
            self._below[key].add(ref)

    def remove(self, ref: ResourceRef) -> None:
        """Forget a resource."""
        key = self._above.pop(ref, None)
        if key is None:
            return
        self._below[key].discard(ref)
        if not self._below[key]:
            del self._below[key]

    def dependents(self, key: DomainKey) -> list[ResourceRef]:
        """Return what names this Domain, in order of name."""
        return sorted(self._below.get(key, ()), key=str)
