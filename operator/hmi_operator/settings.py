"""Settings of the operator process: one validated tree, read once by whoever starts it."""

import platform
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from hmi_api.internal.catalog import GRACE
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.common import Resources
from hmi_api.security.address_policy import AddressPolicySettings
from hmi_api.settings import PREFIX, HmiSettings
from hmi_operator.kubernetes.jobs import TrainerSettings
from hmi_operator.kubernetes.webhook import WebhookAddress
from hmi_operator.planning import CLUSTER, Environment


class ReleaseSettings(HmiSettings):
    """What ``release`` is told; every field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    namespace: str = Field(
        default="hmi-system", min_length=1, description="The operator's own, with its Lease."
    )
    watch_namespaces: tuple[str, ...] = Field(default=(), description="Looked after; all when empty.")
    lease_seconds: float = Field(
        default=12.0, ge=2, le=300, description="A replica that is silent for so long is replaced."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="One line a record, either way.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe."
    )


class OperatorSettings(AdapterLimits, ReleaseSettings, AddressPolicySettings):
    """What an operator process is told; every field is also an ``HMI_`` environment variable."""

    control_plane_url: str = Field(
        pattern="^https?://", description="The control plane, as the operator sees it."
    )
    internal_token: SecretStr | None = Field(
        default=None, min_length=16, description="Shown to the control plane; or the next."
    )
    internal_token_file: Path | None = Field(
        default=None, description="File with that token, read again when it changes."
    )
    excluded_namespaces: tuple[str, ...] = Field(
        default=("kube-system", "kube-public", "kube-node-lease"),
        description="Namespaces in which nothing is made, beside the operator's own; none of those that "
        "watch_namespaces names.",
    )
    pod_name: str = Field(default_factory=platform.node, description="Who this replica is.")
    workers: int = Field(default=8, ge=1, le=256, description="Resources reconciled at once.")
    reconciles_per_second: float = Field(
        default=20.0, gt=0, description="Bound on looking again at resources of which nothing was heard."
    )
    resync_seconds: float = Field(default=15.0, gt=0, description="How often that is, where they are few.")
    progress_seconds: float = Field(
        default=3.0, gt=0, description="Least seconds between two looks at a training run's progress."
    )
    orphan_grace_seconds: float = Field(
        default=3600.0, ge=60, description="How long the catalog keeps what has no object in the cluster."
    )
    inherited_grace_seconds: float = Field(
        default=24 * 3600.0, ge=60, description="The same after a catalog was taken over by a new cluster."
    )
    revocation_grace_seconds: float = Field(
        default=GRACE.total_seconds(),
        ge=0,
        description="How long a TaskAdapter is served on a Domain that is not shared with it any more.",
    )
    probe_host: str = Field(default="::", description="Address of probes and metrics; :: for every one.")
    probe_port: int = Field(default=8082, ge=0, le=65535, description="Port of probes and metrics.")
    webhook_cert_file: Path | None = Field(
        default=None, description="Certificate of the validating webhook, PEM; no webhook when absent."
    )
    webhook_key_file: Path | None = Field(default=None, description="Its key, PEM.")
    webhook_host: str = Field(default="::", description="Address of the webhook; :: for every one.")
    webhook_port: int = Field(default=9443, ge=0, le=65535, description="Port of the webhook.")
    trainer_instance: str = Field(
        default="hmi", min_length=1, description="Label app.kubernetes.io/instance of training Jobs."
    )
    trainer_image: str = Field(min_length=1, description="Image of training Jobs.")
    trainer_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    trainer_image_pull_secrets: tuple[str, ...] = ()
    trainer_control_plane_url: str | None = Field(
        default=None, description="The control plane, as Jobs see it; the operator's address when absent."
    )
    trainer_node_selector: dict[str, str] = Field(default_factory=dict)
    trainer_tolerations: tuple[dict[str, Any], ...] = ()
    trainer_affinity: dict[str, Any] = Field(default_factory=dict)
    trainer_priority_class_name: str = ""
    trainer_runtime_class_name: str = ""
    trainer_pod_labels: dict[str, str] = Field(default_factory=dict)
    trainer_pod_annotations: dict[str, str] = Field(default_factory=dict)
    trainer_extra_env: tuple[dict[str, Any], ...] = ()
    trainer_extra_volumes: tuple[dict[str, Any], ...] = ()
    trainer_extra_volume_mounts: tuple[dict[str, Any], ...] = ()
    ca_certificates: str = Field(default="", description="PEM of further authorities that Jobs trust.")
    data_addresses: Literal["cluster"] = Field(
        default="cluster", description="Whose addresses tenants may name: those of the outside."
    )
    trainer_http_proxy: str = Field(default="", description="Proxy of Jobs for http:// data.")
    trainer_https_proxy: str = Field(default="", description="Proxy of Jobs for https:// data, hub and S3.")
    trainer_no_proxy: str = Field(default="", description="What Jobs call without a proxy.")
    trainer_network_policy: bool = Field(
        default=True, description="Keep a NetworkPolicy for training pods in each namespace."
    )
    trainer_egress: tuple[dict[str, Any], ...] = Field(
        default=(), description="More NetworkPolicyEgressRules for training pods."
    )
    trainer_default_resources: Resources | None = Field(
        default=None, description="For what a spec's resources do not name."
    )
    trainer_deadline_seconds: int = Field(default=24 * 3600, ge=1)
    trainer_ttl_seconds: int = Field(default=3600, ge=600)
    trainer_succeeded_ttl_seconds: int = Field(default=600, ge=600)
    trainer_checkpoint_size: str = Field(default="4Gi", description="Empty: on the pod's own disk.")
    trainer_checkpoint_storage_class: str | None = None

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if (self.internal_token is None) == (self.internal_token_file is None):
            raise ValueError("set either HMI_INTERNAL_TOKEN or HMI_INTERNAL_TOKEN_FILE")
        return self

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.webhook_cert_file is None) != (self.webhook_key_file is None):
            raise ValueError("set both HMI_WEBHOOK_CERT_FILE and HMI_WEBHOOK_KEY_FILE, or neither")
        return self

    def environment(self) -> Environment:
        """Return what training Jobs can read, where none are made, and what runtimes serve."""
        excluded = {*self.excluded_namespaces, self.namespace} - {*self.watch_namespaces}
        return replace(
            CLUSTER,
            excluded=frozenset(excluded),
            limits=self.limits(),
            addresses=self.address_policy(),
            revocation_grace=timedelta(seconds=self.revocation_grace_seconds),
        )

    def webhook(self) -> WebhookAddress | None:
        """Return where the validating webhook listens; None when there is none."""
        if self.webhook_cert_file is None or self.webhook_key_file is None:
            return None
        return WebhookAddress(
            self.webhook_cert_file, self.webhook_key_file, self.webhook_host, self.webhook_port
        )

    def trainer(self) -> TrainerSettings:
        """Return what training Jobs are made from."""
        own = {
            "image": self.trainer_image,
            "image_pull_policy": self.trainer_image_pull_policy,
            "image_pull_secrets": self.trainer_image_pull_secrets,
            "control_plane_url": self.trainer_control_plane_url or self.control_plane_url,
            "node_selector": self.trainer_node_selector,
            "tolerations": self.trainer_tolerations,
            "affinity": self.trainer_affinity,
            "priority_class_name": self.trainer_priority_class_name,
            "runtime_class_name": self.trainer_runtime_class_name,
            "pod_labels": self.trainer_pod_labels,
            "pod_annotations": self.trainer_pod_annotations,
            "extra_env": self.trainer_extra_env,
            "extra_volumes": self.trainer_extra_volumes,
            "extra_volume_mounts": self.trainer_extra_volume_mounts,
            "ca_certificates": self.ca_certificates,
            "data_allowed_hosts": self.data_allowed_hosts,
            "data_allowed_networks": self.data_allowed_networks,
            "data_cluster_networks": self.data_cluster_networks,
            "http_proxy": self.trainer_http_proxy,
            "https_proxy": self.trainer_https_proxy,
            "no_proxy": self.trainer_no_proxy,
            "network_policy": self.trainer_network_policy,
            "control_plane_namespace": self.namespace,
            "egress": self.trainer_egress,
            "default_resources": self.trainer_default_resources,
            "deadline_seconds": self.trainer_deadline_seconds,
            "ttl_seconds": self.trainer_ttl_seconds,
            "succeeded_ttl_seconds": self.trainer_succeeded_ttl_seconds,
            "checkpoint_size": self.trainer_checkpoint_size,
            "checkpoint_storage_class": self.trainer_checkpoint_storage_class,
            "instance": self.trainer_instance,
            "limits": self.limits(),
        }
        return TrainerSettings.model_validate(
            {name: value for name, value in own.items() if value is not None}
        )
