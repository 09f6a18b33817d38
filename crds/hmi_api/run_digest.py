"""The digest that names what a training run is asked to make, so that asking twice makes it once.

Fields that stand at their defaults are left out: a field that a later release adds does not make
every version look outdated.
"""

from typing import Any

from hmi_api.common import ApiModel, Resources
from hmi_api.domain import Domain, OnMiss, Refresh, Sharing
from hmi_api.names import RETRAIN_ANNOTATION, Digest, digest_json
from hmi_api.task_adapter import Serving, TaskAdapter


def domain_run_digest(domain: Domain, parent_layers: str | None) -> Digest:
    """Return the digest of a Domain's training: its spec and the digest of its parent's layers.

    What changes who may use a result, or when it is made, but not the result, is left out.
    """
    plot = domain.spec.plot.model_copy(update={"refresh": Refresh()})
    trained = domain.spec.model_copy(
        update={"plot": plot, "sharing": Sharing(), "resources": Resources(), "suspend": False}
    )
    return digest_json({"spec": _sparse(trained), "parentLayers": parent_layers, "retrain": _retrain(domain)})


def adapter_run_digest(adapter: TaskAdapter, layers: str | None, on_miss: OnMiss | None) -> Digest:
    """Return the digest of a TaskAdapter's training: its spec, its Domain's layers and what a miss does.

    A table's content is left out: a refresh keeps the layers, and adapters go on unchanged.
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
