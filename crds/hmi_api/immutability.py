"""What of a resource cannot change once it is applied, and how a change is found.

On Kubernetes the CRD's own rules refuse such a change; the embedded resource API asks here.
"""

from hmi_api.domain import Domain
from hmi_api.task_adapter import TaskAdapter


def changed_immutables(old: Domain | TaskAdapter, new: Domain | TaskAdapter) -> list[str]:
    """Return the paths of immutable fields in which ``new`` differs from ``old``."""
    if isinstance(old, Domain) and isinstance(new, Domain):
        pairs: dict[str, tuple[object, object]] = {
            "spec.baseModel": (old.spec.base_model, new.spec.base_model),
            "spec.split": (old.spec.split, new.spec.split),
        }
    elif isinstance(old, TaskAdapter) and isinstance(new, TaskAdapter):
        pairs = {
            "spec.domainRef": (old.domain_key, new.domain_key),
            "spec.task.type": (old.spec.task.type, new.spec.task.type),
        }
    else:
        pairs = {"kind": (old.kind, new.kind)}
    return [path for path, (before, after) in pairs.items() if before != after]
