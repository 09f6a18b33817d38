"""Settings of the control plane, one validated tree; read from the environment only when made."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from hmi_control_plane.gateway import GatewaySettings


class Settings(BaseSettings):
    """What a control plane process is told; every field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(env_prefix="HMI_", env_nested_delimiter="__", extra="ignore")

    database_url: str = Field(
        default="sqlite:///.hmi/catalog.db", description="SQLAlchemy address; sqlite:/// or postgresql://."
    )
    migrate_on_start: bool = Field(default=True, description="Bring the database to the newest revision.")
    artifacts: str = Field(default=".hmi/artifacts", description="Root of the artifact store, fsspec.")
    usage_dir: Path = Field(default=Path(".hmi/usage"), description="Folder of the durable usage spool.")
    internal_token: SecretStr = Field(
        description="What HMI's own parts show; at least 16 characters.", min_length=16
    )
    admin_key: SecretStr = Field(
        description="What an administrator shows; at least 16 characters.", min_length=16
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on.")
    body_limit_bytes: int = Field(
        default=1 << 20, ge=1, description="Largest request body of a tenant or administrator."
    )
    internal_body_limit_bytes: int = Field(
        default=32 << 20, ge=1, description="Largest body of an internal call; a full heartbeat is megabytes."
    )
    runtime_lost_after_seconds: float = Field(
        default=15.0, gt=0, description="A runtime this long without a heartbeat is lost; its adapters move."
    )
    runtime_forgotten_after_seconds: float = Field(
        default=3600.0, gt=0, description="A lost runtime that holds no placement is forgotten after this."
    )
    sweep_every_seconds: float = Field(
        default=2.0,
        gt=0,
        description="How often lost runtimes, unplaced adapters and orphans are looked for.",
    )
    key_cache_seconds: float = Field(
        default=3.0, ge=0, description="How long a checked API key is believed; revocation takes this long."
    )
    gateway: GatewaySettings = Field(default_factory=GatewaySettings, description="Limits of inference.")
    usage_flush_seconds: float = Field(
        default=1.0, gt=0, description="How often spooled usage events are moved to the catalog."
    )
    currency: str = Field(
        default="USD", pattern="^[A-Z]{3}$", description="ISO 4217 code, where a bill or price names none."
    )
    desired_wait_limit_seconds: float = Field(
        default=55.0, ge=0, description="Longest a runtime's request for its desired state is held open."
    )
