"""Types of an inference request from the gateway to a runtime: ``POST {runtime}/internal/v1/infer``."""

from typing import Literal

from pydantic import Field

from hmi_api.internal.storable import WireModel
from hmi_api.tag_schemes import TagScheme


class Truncation(WireModel):
    """Truncation to ``tokens``, special ones included; -1 for the longest text that the runtime accepts."""

    tokens: int = Field(ge=-1)
    side: Literal["left", "right"] = Field(default="right", description="The end at which it is cut.")


class InferRow(WireModel):
    """One text for one adapter."""

    adapter: str = Field(description="tenant/adapter.")
    text: str | None = None
    words: list[str] | None = Field(
        default=None, description="Pre-split text for token tasks, instead of text."
    )
    truncate: Truncation | None = Field(default=None, description="A text too long is refused if absent.")


class InferRequest(WireModel):
    """Rows of one request; each succeeds or fails by itself."""

    request_id: str
    rows: list[InferRow]
    tenant_id: str | None = Field(
        default=None,
        description="Id of the requesting tenant; adapters of other tenants count as not loaded.",
    )


class TokenLabel(WireModel):
    """A labelled span of the text."""

    text: str
    start: int = Field(description="First character, from 0.")
    end: int = Field(description="One past the last character.")
    label: str
    score: float


class RowError(WireModel):
    """Why one row has no answer."""

    status: int
    reason: str
    message: str


class RowResult(WireModel):
    """Result of one row: an error, scores (sequence tasks) or tokens (token tasks)."""

    error: RowError | None = None
    version: int | None = None
    labels: list[str] = Field(default_factory=list)
    scores: list[float] = Field(default_factory=list, description="Softmax, in the order of labels.")
    tokens: list[TokenLabel] = Field(default_factory=list)
    tag_scheme: TagScheme | None = Field(
        default=None, description="Token tasks: how labels say where entities begin and end."
    )
    prompt_tokens: int = 0
    table_hits: int = 0
    table_lookups: int = 0


class InferReply(WireModel):
    """One result a row, in order."""

    results: list[RowResult]
