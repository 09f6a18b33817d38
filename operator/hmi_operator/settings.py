"""Settings of the operator process, from environment variables."""

import platform
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from hmi_api.internal.catalog import GRACE
from hmi_api.settings import PREFIX, HmiSettings
from hmi_operator.kubernetes.jobs import TrainerSettings
from hmi_operator.kubernetes.webhook import WebhookAddress
from hmi_operator.planning import CLUSTER, Environment


class ReleaseSettings(HmiSettings):
    """Settings of ``release``; each field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    namespace: str = Field(
        default="hmi-system", min_length=1, description="Namespace of the operator and its Lease."
    )
    watch_namespaces: tuple[str, ...] = Field(default=(), description="Namespaces to watch; empty for all.")
    lease_seconds: float = Field(
        default=12.0, ge=2, le=300, description="How long a replica leads without renewing its Lease."
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Format of log records; each is one line."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Lowest severity that is logged."
    )


class OperatorSettings(TrainerSettings, ReleaseSettings):
    """Settings of the operator; each field is also an ``HMI_`` environment variable."""

    internal_token: SecretStr | None = Field(
        default=None, min_length=16, description="Token for the control plane; or set the file."
    )
    internal_token_file: Path | None = Field(
        default=None, description="File with the token, read again when it changes."
    )
    excluded_namespaces: tuple[str, ...] = Field(
        default=("kube-system", "kube-public", "kube-node-lease"),
        description="Namespaces in which nothing is created, besides the operator's own. Namespaces in "
        "watch_namespaces are never excluded.",
    )
    pod_name: str = Field(default_factory=platform.node, description="Name of this replica.")
    workers: int = Field(default=8, ge=1, le=256, description="Resources reconciled at the same time.")
    reconciles_per_second: float = Field(
        default=20.0, gt=0, description="Most reconciliations without an event in a second."
    )
    resync_seconds: float = Field(
        default=15.0,
        gt=0,
        description="How often a resource is reconciled without an event; rarer if there are many.",
    )
    progress_seconds: float = Field(
        default=3.0, gt=0, description="Shortest time between two reads of a training run's progress."
    )
    orphan_grace_seconds: float = Field(
        default=3600.0,
        ge=60,
        description="How long the catalog keeps a record without an object in the cluster.",
    )
    inherited_grace_seconds: float = Field(
        default=24 * 3600.0, ge=60, description="The same after a new cluster has taken over the catalog."
    )
    revocation_grace_seconds: float = Field(
        default=GRACE.total_seconds(),
        ge=0,
        description="How long a TaskAdapter is served on a Domain that is not shared with it any more.",
    )
    probe_host: str = Field(default="::", description="Address of probes and metrics; :: for all.")
    probe_port: int = Field(default=8082, ge=0, le=65535, description="Port of probes and metrics.")
    webhook_cert_file: Path | None = Field(
        default=None, description="Certificate of the validating webhook, PEM; no webhook if absent."
    )
    webhook_key_file: Path | None = Field(default=None, description="Its key, PEM.")
    webhook_host: str = Field(default="::", description="Address of the webhook; :: for all.")
    webhook_port: int = Field(default=9443, ge=0, le=65535, description="Port of the webhook.")
    data_addresses: Literal["cluster"] = Field(
        default="cluster", description="cluster: public addresses and those listed."
    )

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
        """Return what training Jobs can read, where none are created, and what runtimes serve."""
        excluded = {*self.excluded_namespaces, self.namespace} - {*self.watch_namespaces}
        return replace(
            CLUSTER,
            excluded=frozenset(excluded),
            limits=self.limits(),
            addresses=self.address_policy(),
            revocation_grace=timedelta(seconds=self.revocation_grace_seconds),
        )

    def webhook(self) -> WebhookAddress | None:
        """Return where the validating webhook listens; None for no webhook."""
        if self.webhook_cert_file is None or self.webhook_key_file is None:
            return None
        return WebhookAddress(
            self.webhook_cert_file, self.webhook_key_file, self.webhook_host, self.webhook_port
        )
