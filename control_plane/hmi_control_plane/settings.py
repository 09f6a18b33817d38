"""Settings of the control plane and the gateway, read from environment variables when created."""

from datetime import date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from hmi_api.security.internal_auth import InternalAuthSettings
from hmi_api.security.request_body import BODY_SECONDS
from hmi_api.settings import HmiSettings

Seconds = Annotated[float, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]


class GatewaySettings(BaseModel):
    """Limits of a request, timeouts and caches of the gateway."""

    max_characters: PositiveInt = Field(default=100_000, description="Characters of one text.")
    max_words: PositiveInt = Field(default=20_000, description="Words of one pre-split text.")
    max_texts: PositiveInt = Field(default=256, description="Texts of one request.")
    max_models: PositiveInt = Field(default=32, description="Models that one request may fan out over.")
    max_rows: PositiveInt = Field(default=2_048, description="Texts times models of one request.")
    connect_timeout_seconds: PositiveSeconds = Field(default=1.0, description="To reach a runtime.")
    deadline_seconds: PositiveSeconds = Field(default=30.0, description="For one request, retries included.")
    runtime_connections: PositiveInt = Field(default=256, description="Open connections to all runtimes.")
    route_seconds: Seconds = Field(
        default=2.0, description="How long a model's route is cached before it is read again."
    )
    cached_routes: PositiveInt = Field(default=200_000, description="Routes kept in memory.")


class WindowCountSettings(BaseModel):
    """How long the windows that traffic looks up are kept, how many of them, and who may read them."""

    days: PositiveInt = Field(
        default=30, description="Days, in UTC, for which counts are kept; today is one."
    )
    least_tenants: PositiveInt = Field(
        default=3,
        description="A run sees a window that its Domain's own tenant did not ask for only if this many "
        "other tenants did.",
    )
    windows_per_day: PositiveInt = Field(
        default=50_000, description="Windows kept for one tenant, Domain and day: the most frequent."
    )
    windows_per_domain: PositiveInt = Field(
        default=1_000_000, description="Windows kept for one Domain, summed over tenants and days."
    )
    rows_per_domain: PositiveInt = Field(
        default=50_000,
        description="Rows kept for one Domain, one for each tenant and day; of more, the oldest days "
        "are deleted first.",
    )
    merge_seconds: PositiveSeconds = Field(
        default=30.0, description="How often runtimes' reports are merged into the counts."
    )

    def first_day(self, now: datetime) -> date:
        """Return the first day whose counts are still kept."""
        return now.date() - timedelta(days=self.days - 1)


class Part(StrEnum):
    """Which part of the control plane a process runs."""

    SERVE = "serve"  # everything in one process, as on one machine
    CONTROL_PLANE = "control-plane"  # internal and admin APIs, tenants' accounts, sweeper
    GATEWAY = "gateway"  # the API of tenants, the usage spool and its flusher


class DatabaseSettings(HmiSettings):
    """The address of the catalog database: all that migrations need."""

    database_url: str = Field(
        default="sqlite:///.hmi/catalog.db",
        min_length=1,
        description="SQLAlchemy address; sqlite:/// or postgresql://.",
    )


class Settings(DatabaseSettings, InternalAuthSettings):
    """Settings of a control plane process; every field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(env_nested_delimiter="__")

    migrate_on_start: bool = Field(
        default=True,
        description="Bring the database to the newest revision; only where everything is one process.",
    )
    artifacts: str = Field(default=".hmi/artifacts", description="Root of the artifact store, fsspec.")
    usage_dir: Path = Field(default=Path(".hmi/usage"), description="Folder of the durable usage spool.")
    usage_spool_limit_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Most bytes of events in the spool; beyond that, requests are refused. None: no limit.",
    )
    admin_key: SecretStr | None = Field(
        default=None,
        description="Key of administrators; at least 16 characters. A gateway needs none.",
        min_length=16,
    )
    host: str = Field(
        default="127.0.0.1", description="Address to listen on; :: for every one of IPv4 and IPv6."
    )
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on.")
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Separate port for /metrics; served on the API's port where none is given.",
    )
    openapi_is_public: bool = Field(default=True, description="Whether /openapi.json and /docs need no key.")
    body_limit_bytes: PositiveInt = Field(
        default=1 << 20, description="Largest request body of a tenant or administrator."
    )
    internal_body_limit_bytes: PositiveInt = Field(
        default=32 << 20, description="Largest body of an internal call; a full heartbeat is megabytes."
    )
    artifact_limit_bytes: PositiveInt = Field(
        default=16 << 30, description="Largest artifact that a training Job publishes over HTTP."
    )
    body_seconds: PositiveSeconds = Field(
        default=BODY_SECONDS,
        description="How long a request's body may take to arrive; of an artifact's upload, each part.",
    )
    runtime_lost_after_seconds: PositiveSeconds = Field(
        default=15.0, description="A runtime without a heartbeat for this long is lost; its adapters move."
    )
    runtime_forgotten_after_seconds: PositiveSeconds = Field(
        default=3600.0, description="A lost runtime without placements is deleted after this."
    )
    sweep_every_seconds: PositiveSeconds = Field(
        default=2.0,
        description="How often the sweeper handles lost runtimes, unplaced adapters and orphans.",
    )
    drain_delay_seconds: Seconds = Field(
        default=5.0,
        description="After SIGTERM: how long requests are still accepted while readiness is false.",
    )
    drain_seconds: Seconds = Field(
        default=30.0, description="After that: how long running requests may take."
    )
    key_cache_seconds: Seconds = Field(
        default=3.0, description="How long a checked API key is cached, and so how long a revocation takes."
    )
    without_database_seconds: Seconds = Field(
        default=300.0,
        description="How long a gateway uses cached keys and routes while the database is down.",
    )
    gateway: GatewaySettings = Field(default_factory=GatewaySettings, description="Limits of inference.")
    window_counts: WindowCountSettings = Field(
        default_factory=WindowCountSettings, description="Counts of the windows that traffic looks up."
    )
    usage_flush_seconds: PositiveSeconds = Field(
        default=1.0, description="How often spooled usage events are moved to the catalog."
    )
    currency: str = Field(
        default="USD", pattern="^[A-Z]{3}$", description="ISO 4217 code for bills and prices that name none."
    )
    desired_wait_limit_seconds: Seconds = Field(
        default=55.0, description="Longest time that a long poll for a desired state stays open."
    )

    def missing_for(self, part: Part) -> list[str]:
        """Return the environment variables that ``part`` needs and that are not set."""
        missing = []
        if part is not Part.GATEWAY and self.admin_key is None:
            missing.append("HMI_ADMIN_KEY")
        if part is not Part.CONTROL_PLANE and not self.has_token:
            missing.append("HMI_INTERNAL_TOKEN_FILE")
        return missing
