"""Settings of training Jobs, which are part of the operator's settings."""

from typing import Any, Literal

from pydantic import Field

from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.common import Resources
from hmi_api.security.address_policy import AddressPolicySettings


class TrainerSettings(AdapterLimits, AddressPolicySettings):
    """How training Jobs are made, the same for every tenant; each field is also an ``HMI_`` variable."""

    namespace: str = Field(
        default="hmi-system", min_length=1, description="Namespace of the operator and the control plane."
    )
    control_plane_url: str = Field(
        pattern="^https?://", description="Address of the control plane for the operator."
    )
    trainer_control_plane_url: str | None = Field(
        default=None, description="Address of the control plane for Jobs; the operator's if absent."
    )
    trainer_instance: str = Field(
        default="hmi", min_length=1, description="Label app.kubernetes.io/instance of training Jobs."
    )
    trainer_image: str = Field(min_length=1, description="Image with the training program.")
    trainer_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    trainer_image_pull_secrets: tuple[str, ...] = Field(
        default=(), description="Secrets for the image; each tenant's namespace must have them."
    )
    trainer_node_selector: dict[str, str] = Field(default_factory=dict)
    trainer_tolerations: tuple[dict[str, Any], ...] = ()
    trainer_affinity: dict[str, Any] = Field(default_factory=dict, description="As in a pod's spec.")
    trainer_priority_class_name: str = ""
    trainer_runtime_class_name: str = ""
    trainer_pod_labels: dict[str, str] = Field(default_factory=dict)
    trainer_pod_annotations: dict[str, str] = Field(default_factory=dict)
    trainer_extra_env: tuple[dict[str, Any], ...] = ()
    trainer_extra_volumes: tuple[dict[str, Any], ...] = ()
    trainer_extra_volume_mounts: tuple[dict[str, Any], ...] = ()
    ca_certificates: str = Field(default="", description="PEM of further authorities that Jobs trust.")
    trainer_http_proxy: str = Field(default="", description="Proxy of Jobs for http:// data.")
    trainer_https_proxy: str = Field(default="", description="Proxy of Jobs for https:// data, hub and S3.")
    trainer_no_proxy: str = Field(default="", description="Hosts that Jobs call without a proxy.")
    trainer_network_policy: bool = Field(
        default=True, description="Create a NetworkPolicy for training pods in each namespace."
    )
    trainer_egress: tuple[dict[str, Any], ...] = Field(
        default=(), description="More NetworkPolicyEgressRules for training pods."
    )
    trainer_default_resources: Resources = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "1", "memory": "2Gi"}, limits={"cpu": "2", "memory": "4Gi"}
        ),
        description="For resources that spec.resources does not name.",
    )
    trainer_deadline_seconds: int = Field(
        default=24 * 3600, ge=1, description="Longest life of a Job, waiting included."
    )
    trainer_ttl_seconds: int = Field(
        default=3600, ge=600, description="How long the Job of a failed run is kept, with its log and volume."
    )
    trainer_succeeded_ttl_seconds: int = Field(
        default=600, ge=600, description="The same if the run succeeded."
    )
    trainer_checkpoint_size: str = Field(
        default="4Gi", description="Size of a run's work volume; empty: a pod's own disk, lost with the pod."
    )
    trainer_checkpoint_storage_class: str | None = Field(
        default=None, description="StorageClass of work volumes; the cluster's default if absent."
    )
    trainer_termination_grace_seconds: int = Field(
        default=30, ge=0, description="How long a trainer may take to stop."
    )
