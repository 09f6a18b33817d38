"""Kubernetes' Namespace, of which HMI reads one thing: the label that names its tenant."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from hmi_api.common import DnsLabel


class NamespaceMeta(BaseModel):
    """A namespace's own metadata; what HMI does not read is kept as it came."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    name: DnsLabel
    labels: dict[str, str] = Field(default_factory=dict)


class Namespace(BaseModel):
    """A namespace; its tenant is its label ``hmi.dev/tenant``, else its name."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    api_version: Literal["v1"] = "v1"
    kind: Literal["Namespace"] = "Namespace"
    metadata: NamespaceMeta
