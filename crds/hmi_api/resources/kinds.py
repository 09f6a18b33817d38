"""The two resource kinds: their names in manifests, URLs and commands, and their types."""

from dataclasses import dataclass

from hmi_api.names import GROUP, PLURALS, KindName
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter

Resource = Domain | TaskAdapter


@dataclass(frozen=True)
class Kind:
    """A resource kind."""

    name: KindName
    short: str
    """Its short name for kubectl and ``hmi``."""
    type: type[Domain] | type[TaskAdapter]

    @property
    def plural(self) -> str:
        """Its name in URLs."""
        return PLURALS[self.name]

    @property
    def singular(self) -> str:
        """Its name in messages."""
        return self.name.lower()

    def __str__(self) -> str:
        return f"{self.singular}.{GROUP}"


DOMAIN = Kind("Domain", "dom", Domain)
TASK_ADAPTER = Kind("TaskAdapter", "ta", TaskAdapter)
KINDS: dict[str, Kind] = {kind.name: kind for kind in (DOMAIN, TASK_ADAPTER)}
"""All kinds by name, Domain first."""
