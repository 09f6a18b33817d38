"""Bodies of ``/classify``: vLLM's, and what HMI adds for fan-out and for token tasks."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from hmi_api.errors import ErrorDetail
from hmi_api.internal.inference import TokenLabel, Truncation
from hmi_control_plane.gateway.inference import Text
from hmi_control_plane.gateway.text import FIRST_FAULT, ModelName, WellFormed

_Words = Annotated[list[WellFormed], FIRST_FAULT]


def _only(served: Any, why: str) -> AfterValidator:
    """Return the check of one of vLLM's fields that takes nothing but ``served`` or null, and says why."""

    def check(value: Any) -> Any:
        if value is not None and (value != served or type(value) is not type(served)):
            raise ValueError(f"{why}; leave it out")
        return value

    return AfterValidator(check)


def _not_zero(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("0 would leave nothing of a text; send -1 for the most tokens that are served")
    return tokens


_NOT_ZERO = AfterValidator(_not_zero)

_VLLM: Any = Field(
    default=None, description="A field of vLLM's, taken where it asks for what is done anyway."
)


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
    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1, le=2**31), _NOT_ZERO] | None = Field(
        default=None,
        description="Tokens to keep of a longer text, its opening and closing ones included; -1: the most "
        "that is served. Without it, a text that is too long is refused.",
    )
    truncation_side: Literal["left", "right"] | None = Field(
        default=None, description="The end at which a text is cut; right when absent."
    )
    request_id: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, pattern="^[ -~]*$", description="The answer's id ends in it."
    )
    user: str | None = Field(default=None, description="Your end user; accepted and not used.")

    add_special_tokens: Annotated[Any, _only(True, "every text has its opening and closing tokens here")] = (
        _VLLM
    )
    cache_salt: Annotated[Any, _only(None, "what is computed of texts is shared within a Domain here")] = (
        _VLLM
    )
    messages: Annotated[Any, _only(None, "chats are not served here, texts in input are")] = _VLLM
    mm_processor_kwargs: Annotated[Any, _only(None, "only texts are served here")] = _VLLM
    padding: Annotated[Any, _only("do_not_pad", "texts are not padded to a length here")] = _VLLM
    priority: Annotated[Any, _only(0, "requests have no priority here")] = _VLLM
    use_activation: Annotated[Any, _only(True, "answers are probabilities here")] = _VLLM

    @property
    def texts(self) -> list[Text]:
        """The texts, in order."""
        return [self.input] if isinstance(self.input, str) else list(self.input)

    @property
    def asked_models(self) -> list[str]:
        """The models, ``model`` first."""
        return [*([self.model] if self.model is not None else []), *(self.models or [])]

    @property
    def truncate(self) -> Truncation | None:
        """How to cut texts that are too long, if they are to be cut."""
        if self.truncate_prompt_tokens is None:
            return None
        return Truncation(tokens=self.truncate_prompt_tokens, side=self.truncation_side or "right")


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
