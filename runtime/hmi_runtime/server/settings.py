"""Settings of a runtime process, validated; read from the environment when constructed."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.security.address_policy import AddressPolicySettings
from hmi_api.security.internal_auth import InternalAuthSettings
from hmi_api.security.request_body import BODY_SECONDS
from hmi_runtime.adapters.slot_pool import SlotLimits
from hmi_runtime.serving.batching import BatchLimits
from hmi_runtime.serving.pipeline import PipelineLimits

_GIB = 1 << 30


class RuntimeSettings(AdapterLimits, InternalAuthSettings, AddressPolicySettings):
    """Settings of a runtime process; every field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(
        env_prefix="HMI_", env_nested_delimiter="__", extra="ignore", frozen=True
    )

    control_plane_url: str = Field(description="Where the control plane's internal API is.")
    runtime_id: str = Field(default="runtime-0", description="Stable name of this runtime.")
    runtime_url: str = Field(
        default="http://127.0.0.1:8081", description="Where gateways reach this runtime."
    )
    runtime_host: str | None = Field(
        default=None,
        description="Address to listen on; :: for every one of IPv4 and IPv6. runtime_url's if absent.",
    )
    runtime_port: int | None = Field(
        default=None, ge=0, le=65535, description="Port to listen on; runtime_url's if absent."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of /metrics, apart from inference; beside it where none is given.",
    )
    body_limit_bytes: int = Field(default=32 << 20, ge=1, description="Largest body of a request.")
    body_seconds: float = Field(
        default=BODY_SECONDS, gt=0, description="How long a request's body may take to arrive."
    )

    artifacts: str = Field(default=".hmi/artifacts", description="Root of the artifact store, fsspec.")
    cache_dir: Path = Field(
        default=Path(".hmi/cache"), description="Folder of the local copies of artifacts."
    )
    disk_budget: int = Field(default=20 * _GIB, ge=1, description="Bytes the local copies may take.")
    host_budget: int = Field(default=2 * _GIB, ge=1, description="Bytes of adapters in host memory.")
    table_budget: int = Field(default=8 * _GIB, ge=1, description="Bytes of lookup tables and layers mapped.")
    device_budget: int = Field(
        default=_GIB, ge=1, description="Bytes of device memory for the adapter slots of one base model."
    )
    device_slots: int = Field(
        default=256, ge=1, description="Most adapter slots of one base model; fewer if the budget is smaller."
    )
    dense_heads: bool = Field(default=True, description="Whether slots hold heads with a hidden layer.")
    failed_load_retry_seconds: float = Field(
        default=5.0, ge=0, description="How long a broken adapter is refused before it is read again."
    )

    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N.")
    precision: Literal["auto", "float32", "int8"] = Field(
        default="auto",
        description="Precision of the frozen upper layers; auto is int8 where that is known to pay.",
    )
    threads: int = Field(default=0, ge=0, description="Threads of one product; 0 for one a core.")
    tokenizer_threads: int = Field(default=1, ge=1, description="Threads that tokenise.")
    loader_threads: int = Field(default=4, ge=1, description="Threads that fetch and read artifacts.")

    batch_rows: int = Field(default=32, ge=1, description="Most rows of a batch.")
    batch_tokens: int = Field(default=8192, ge=1, description="Most tokens of a batch, padding included.")
    max_wait_ms: float = Field(
        default=2.0, ge=0, description="How long a row waits for company while nothing else computes."
    )
    max_queue: int = Field(default=2048, ge=1, description="Rows taken in and not yet answered; beyond: 503.")
    max_length: int = Field(default=512, ge=4, description="Most tokens of a text; beyond: 400.")
    request_timeout_seconds: float = Field(
        default=30.0, gt=0, description="After this a waiting row gets 504."
    )

    quarantine_failures: int = Field(
        default=3, ge=1, description="Failed rows in a row after which an adapter is refused for a while."
    )
    quarantine_seconds: float = Field(default=30.0, ge=0, description="How long it is then refused.")

    heartbeat_seconds: float = Field(
        default=2.0, gt=0, description="Seconds between heartbeats if nothing changes."
    )
    poll_seconds: float = Field(
        default=20.0, ge=0, description="Seconds that a poll for a new desired state stays open."
    )
    move_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Seconds to keep serving after SIGTERM while others load what only this runtime has.",
    )
    drain_seconds: float = Field(
        default=10.0, ge=0, description="Seconds that requests in progress may take after that."
    )

    @field_validator("runtime_url")
    @classmethod
    def _bracket_ipv6(cls, url: str) -> str:
        """Put an IPv6 address in brackets: Kubernetes' $(POD_IP) has none, and a URL needs them."""
        bare = re.fullmatch(r"(https?://)([0-9A-Fa-f:.]+:[0-9A-Fa-f:.]*):(\d+)(/.*)?", url)
        if bare is None:
            return url
        scheme, address, port, path = bare.groups(default="")
        return f"{scheme}[{ip_address(address)}]:{port}{path}"

    @property
    def listen_address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        url = urlsplit(self.runtime_url)
        port = self.runtime_port if self.runtime_port is not None else (url.port or 8081)
        return self.runtime_host or url.hostname or "127.0.0.1", port

    @property
    def slot_limits(self) -> SlotLimits:
        """The largest adapter that a slot holds."""
        return SlotLimits(self.max_rank, self.max_bottleneck, self.max_labels, self.dense_heads)

    @property
    def pipeline_limits(self) -> PipelineLimits:
        """Bounds of batches, waiting and queues."""
        return PipelineLimits(
            batch=BatchLimits(self.batch_rows, self.batch_tokens),
            max_wait=self.max_wait_ms / 1000,
            max_queue=self.max_queue,
            max_length=self.max_length,
            request_timeout=self.request_timeout_seconds,
            quarantine_failures=self.quarantine_failures,
            quarantine_seconds=self.quarantine_seconds,
        )
