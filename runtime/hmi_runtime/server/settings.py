"""Settings of a runtime process, validated; read from the environment when constructed."""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator
from pydantic_settings import SettingsConfigDict

from hmi_api.internal.precision import PrecisionSetting
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.common import DNS_LABEL
from hmi_api.security.address_policy import AddressPolicySettings
from hmi_api.security.internal_auth import InternalAuthSettings
from hmi_api.security.request_body import BODY_SECONDS
from hmi_runtime.adapters.slot_pool import SlotLimits
from hmi_runtime.serving.batching import BatchLimits
from hmi_runtime.serving.cores import Cores, available_cores
from hmi_runtime.serving.pipeline import PipelineLimits

_GIB = 1 << 30
Port = Annotated[int, Field(ge=0, le=65535)]


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
        description="Address to listen on, :: for all of IPv4 and IPv6; runtime_url's if absent.",
    )
    runtime_port: Port | None = Field(default=None, description="Port to listen on; runtime_url's if absent.")
    metrics_port: Port | None = Field(
        default=None, description="Port of /metrics; that of inference if absent."
    )
    body_limit_bytes: PositiveInt = Field(default=32 << 20, description="Largest body of a request.")
    body_seconds: PositiveFloat = Field(
        default=BODY_SECONDS, description="Seconds for a request's body to arrive."
    )

    artifacts: str = Field(default=".hmi/artifacts", description="Root of the artifact store, fsspec.")
    cache_dir: Path = Field(default=Path(".hmi/cache"), description="Folder of local copies of artifacts.")
    disk_budget: PositiveInt = Field(default=20 * _GIB, description="Bytes the local copies may take.")
    host_budget: PositiveInt = Field(default=2 * _GIB, description="Bytes of adapters in host memory.")
    table_budget: PositiveInt = Field(
        default=8 * _GIB,
        description="Bytes of lookup tables, layers and computed windows in host memory; rows of tables that "
        "do not fit stay on disk.",
    )
    device_table_budget: NonNegativeInt = Field(
        default=0, description="Bytes of lookup tables' most frequent rows in a GPU's memory; 0: none."
    )
    device_budget: PositiveInt = Field(
        default=_GIB, description="Device memory for the slots of one base model, in bytes."
    )
    device_slots: PositiveInt = Field(
        default=256, description="Most adapter slots of one base model; the budget may allow fewer."
    )
    dense_heads: bool = Field(
        default=True, description="Whether slots have room for heads with a hidden layer."
    )
    failed_load_retry_seconds: NonNegativeFloat = Field(
        default=5.0, description="Seconds until a broken adapter is read again."
    )

    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N.")
    precision: PrecisionSetting = Field(
        default="auto",
        description="Precision of the frozen upper layers; auto is the fastest that is accurate enough.",
    )
    pool: str = Field(
        default="default",
        pattern=DNS_LABEL,
        max_length=63,
        description="Name of the runtimes that share a choice of precision.",
    )
    threads: NonNegativeInt = Field(
        default=0, description="Cores that compute; 0 for all that the process may use."
    )
    tokenizer_threads: PositiveInt = Field(default=1, description="Threads that tokenise.")
    loader_threads: PositiveInt = Field(default=4, description="Threads that fetch and read artifacts.")

    batch_rows: PositiveInt = Field(default=32, description="Most rows of a batch.")
    batch_tokens: PositiveInt = Field(default=8192, description="Most tokens of a batch, padding included.")
    max_wait_ms: NonNegativeFloat = Field(
        default=2.0, description="How long a row waits for others while nothing computes."
    )
    max_queue: PositiveInt = Field(default=2048, description="Most rows without a result; more get 503.")
    max_length: int = Field(default=512, ge=4, description="Most tokens of a text; longer ones get 400.")
    request_timeout_seconds: PositiveFloat = Field(default=30.0, description="Then a waiting row gets 504.")

    quarantine_failures: PositiveInt = Field(
        default=3, description="Consecutive failures until an adapter is quarantined."
    )
    quarantine_seconds: NonNegativeFloat = Field(default=30.0, description="How long it is then refused.")

    heartbeat_seconds: PositiveFloat = Field(
        default=2.0, description="Seconds between heartbeats if nothing changes."
    )
    window_counts_seconds: PositiveFloat = Field(
        default=30.0, description="Seconds between reports of the windows that traffic looked up."
    )
    poll_seconds: NonNegativeFloat = Field(
        default=20.0, description="Seconds that a poll for a desired state stays open."
    )
    move_seconds: NonNegativeFloat = Field(
        default=60.0,
        description="Seconds to serve after SIGTERM while others load what only this runtime has.",
    )
    drain_seconds: NonNegativeFloat = Field(
        default=10.0, description="Seconds that requests in progress may take after that."
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
        """The largest adapter that a slot has room for."""
        return SlotLimits(self.max_rank, self.max_bottleneck, self.max_labels, self.dense_heads)

    @property
    def cores(self) -> Cores:
        """The cores that compute. An accelerator runs one batch at a time."""
        return Cores(self.threads or available_cores(), 1 if self.device.startswith("cuda") else None)

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
