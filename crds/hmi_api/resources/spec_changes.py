"""What a change of a spec means: which fields are immutable, and the digest that decides about training."""

from typing import Any

from hmi_api.names import RETRAIN_ANNOTATION, Digest, digest_json
from hmi_api.resources.common import ApiModel, Resources
from hmi_api.resources.domain import Domain, OnMiss, Sharing
from hmi_api.resources.task_adapter import Serving, TaskAdapter


def domain_run_digest(domain: Domain, parent_layers: str | None) -> Digest:
    """Return the digest of a Domain's training: its spec and the digest of its parent's layers.

    Fields that do not affect the result, such as sharing and resources, are left out.
    """
    plot = domain.spec.plot.model_copy(update={"refresh": None})
    trained = domain.spec.model_copy(
        update={"plot": plot, "sharing": Sharing(), "resources": Resources(), "suspend": False}
    )
    return digest_json({"spec": _sparse(trained), "parentLayers": parent_layers, "retrain": _retrain(domain)})


def adapter_run_digest(adapter: TaskAdapter, layers: str | None, on_miss: OnMiss | None) -> Digest:
    """Return the digest of a TaskAdapter's training: its spec, its Domain's layers and what a miss does.

    A table's content is left out: a refresh keeps the layers, so adapters do not change.
    """
    trained = adapter.spec.model_copy(
        update={"serving": Serving(), "resources": Resources(), "suspend": False}
    )
    return digest_json(
        {"spec": _sparse(trained), "layers": layers, "onMiss": on_miss, "retrain": _retrain(adapter)}
    )


def _sparse(spec: ApiModel) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)


def _retrain(resource: Domain | TaskAdapter) -> str | None:
    return resource.metadata.annotations.get(RETRAIN_ANNOTATION)


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
