"""Bodies of ``/classify``: vLLM's, and what HMI adds for fan-out and for token tasks."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hmi_api.errors import ErrorDetail
from hmi_api.wire import TokenLabel
from hmi_control_plane.gateway.inference import Text
from hmi_control_plane.gateway.text import FIRST_FAULT, ModelName, WellFormed

_Words = Annotated[list[WellFormed], FIRST_FAULT]


class ClassifyRequest(BaseModel):
    """Texts for one model, or for several (fan-out)."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName | None = Field(default=None, description="Name of one of your models.")
    models: Annotated[list[ModelName], FIRST_FAULT] | None = Field(
        default=None, description="Several of them: every text goes through each, in one batch."
    )
    input: WellFormed | Annotated[list[WellFormed | _Words], FIRST_FAULT] = Field(
        description="A text, or several; for token tasks a text may be a list of words."
    )
    user: str | None = Field(default=None, description="Your end user; accepted and not used.")

    @property
    def texts(self) -> list[Text]:
        """The texts, in order."""
        return [self.input] if isinstance(self.input, str) else list(self.input)

    @property
    def asked_models(self) -> list[str]:
        """The models, ``model`` first."""
        return [*([self.model] if self.model is not None else []), *(self.models or [])]


class Usage(BaseModel):
    """Tokens, as OpenAI counts them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classification(BaseModel):
    """One text's answer: label and probs for sequence tasks, tokens and entities for token tasks."""

    index: int
    label: str | None = None
    probs: list[float] | None = Field(default=None, description="In the order of labels; they sum to 1.")
    num_classes: int
    tokens: list[TokenLabel] | None = None
    entities: list[TokenLabel] | None = Field(default=None, description="Tokens merged into stretches.")


class ClassifyResponse(BaseModel):
    """One model's answer."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    labels: list[str] = Field(description="Names of the classes, in the order of probs.")
    data: list[Classification]
    usage: Usage


class ModelClassifications(BaseModel):
    """One model's part of a fan-out: data, or an error of its own."""

    model: str
    labels: list[str] | None = None
    data: list[Classification] | None = None
    usage: Usage | None = None
    error: ErrorDetail | None = None


class FanOutResponse(BaseModel):
    """The answers of several models, in the order asked."""

    id: str
    object: Literal["list"] = "list"
    created: int
    models: list[ModelClassifications]
    usage: Usage
