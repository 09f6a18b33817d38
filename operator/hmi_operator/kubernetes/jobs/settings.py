"""What an installation says of its training Jobs."""

from ipaddress import IPv4Network, IPv6Network
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.common import Resources


class TrainerSettings(BaseModel):
    """How training Jobs are made; the same for every tenant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(min_length=1, description="Image with the training program.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = Field(
        default=(), description="Secrets for the image; each tenant's namespace must have them."
    )
    control_plane_url: str = Field(min_length=1, description="The control plane, as tenants' pods reach it.")
    audience: str = Field(default="hmi-control-plane", description="Audience of the token that Jobs present.")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    affinity: dict[str, Any] = Field(default_factory=dict, description="As in a pod, as the next are.")
    priority_class_name: str = ""
    runtime_class_name: str = ""
    pod_labels: dict[str, str] = Field(default_factory=dict)
    pod_annotations: dict[str, str] = Field(default_factory=dict)
    extra_env: tuple[dict[str, Any], ...] = ()
    extra_volumes: tuple[dict[str, Any], ...] = ()
    extra_volume_mounts: tuple[dict[str, Any], ...] = ()
    ca_certificates: str = Field(default="", description="PEM of further authorities that Jobs trust.")
    data_allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Hosts that data may be read from though they have private addresses."
    )
    data_allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="CIDR blocks that data may be read from though they are not public."
    )
    data_cluster_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="CIDR blocks of the cluster's own, where they are not private."
    )
    http_proxy: str = Field(default="", description="Proxy for http:// addresses; empty for none.")
    https_proxy: str = Field(default="", description="Proxy for https:// addresses; empty for none.")
    no_proxy: str = Field(default="", description="What is called without a proxy, as in NO_PROXY.")
    network_policy: bool = Field(default=True, description="Whether training pods get a NetworkPolicy.")
    control_plane_namespace: str = Field(
        default="hmi-system", min_length=1, description="Namespace of the control plane's pods."
    )
    egress: tuple[dict[str, Any], ...] = Field(
        default=(), description="More NetworkPolicyEgressRules for training pods."
    )
    default_resources: Resources = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "1", "memory": "2Gi"}, limits={"cpu": "2", "memory": "4Gi"}
        ),
        description="For resources that spec.resources does not name.",
    )
    deadline_seconds: int = Field(
        default=24 * 3600, ge=1, description="Longest life of a Job, waiting included."
    )
    ttl_seconds: int = Field(
        default=3600, ge=600, description="How long the Job of a failed run is kept, with its log and volume."
    )
    succeeded_ttl_seconds: int = Field(default=600, ge=600, description="The same where the run succeeded.")
    checkpoint_size: str = Field(
        default="4Gi", description="Size of a run's work volume; empty: a pod's own disk, lost with the pod."
    )
    checkpoint_storage_class: str | None = Field(default=None, description="None for the cluster's default.")
    termination_grace_seconds: int = Field(default=30, ge=0)
    limits: AdapterLimits = Field(
        default_factory=AdapterLimits, description="The largest adapters that runtimes serve."
    )
    instance: str = Field(default="hmi", description="Label app.kubernetes.io/instance of what is made.")
