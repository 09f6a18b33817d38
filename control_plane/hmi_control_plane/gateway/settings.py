"""What an operator can set of the gateway."""

from pydantic import BaseModel, Field


class GatewaySettings(BaseModel):
    """Limits of a request, and how long the gateway waits and believes."""

    max_characters: int = Field(default=100_000, ge=1, description="Characters of one text.")
    max_words: int = Field(default=20_000, ge=1, description="Words of one pre-split text.")
    max_texts: int = Field(default=256, ge=1, description="Texts of one request.")
    max_models: int = Field(default=32, ge=1, description="Models that one request may fan out over.")
    max_rows: int = Field(default=2_048, ge=1, description="Texts times models of one request.")
    connect_timeout_seconds: float = Field(default=1.0, gt=0, description="To reach a runtime.")
    deadline_seconds: float = Field(default=30.0, gt=0, description="For one request, retries included.")
    runtime_connections: int = Field(default=256, ge=1, description="Open connections to all runtimes.")
    route_seconds: float = Field(
        default=2.0, ge=0, description="How long a model's route is believed before it is read again."
    )
    cached_routes: int = Field(default=200_000, ge=1, description="Routes kept in memory.")
