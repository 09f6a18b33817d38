"""What the control plane wants of this runtime, and what changes when it says something new. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hmi_api.internal.runtimes import AdapterServing, DesiredState, DomainServing


@dataclass(frozen=True)
class Changes:
    """What to do about a new desired state."""

    load: Sequence[AdapterServing]
    remove: Sequence[str]


@dataclass
class Wanted:
    """The desired state as far as it is known: full answers replace it, others amend it."""

    revision: int = 0
    adapters: dict[str, AdapterServing] = field(default_factory=dict)
    domains: dict[tuple[str, int], DomainServing] = field(default_factory=dict)

    def apply(self, state: DesiredState) -> Changes:
        """Take in an answer and return what it changes."""
        domains = {(domain.key, domain.version.version): domain for domain in state.domains}
        named = {adapter.key: adapter for adapter in state.adapters}
        load = [adapter for adapter in named.values() if self.adapters.get(adapter.key) != adapter]
        if state.full:
            remove = [key for key in self.adapters if key not in named]
            self.adapters, self.domains = named, domains
        else:
            remove = [key for key in state.removed_adapters if key in self.adapters and key not in named]
            self.adapters |= named
            self.domains |= domains
            for key in remove:
                del self.adapters[key]
        self.revision = state.revision
        return Changes(load, remove)

    def domain_of(self, adapter: AdapterServing) -> DomainServing | None:
        """Return the version of its Domain that an adapter stands on, if it was announced."""
        return self.domains.get((adapter.domain, adapter.domain_version))

    def still(self, adapter: AdapterServing) -> bool:
        """Return whether this very version of an adapter is still wanted."""
        return self.adapters.get(adapter.key) == adapter
