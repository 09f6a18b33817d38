"""``POST /classify``, compatible with vLLM, with ``models`` for fan-out and tokens for token tasks."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from hmi_api.errors import ErrorDetail
from hmi_api.internal.inference import RowResult, TokenLabel, Truncation
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.gateway.inference import (
    Inference,
    InferenceResult,
    ModelResult,
    Text,
    best_label,
    merge_entities,
)
from hmi_control_plane.gateway.requests import (
    STOP_AT_FIRST_ERROR,
    ModelName,
    UnicodeText,
    direct_route,
    json_reader,
)

_Words = Annotated[list[UnicodeText], STOP_AT_FIRST_ERROR]


def _accept_only(supported: Any, why: str) -> AfterValidator:
    """Return a validator that accepts only ``supported`` or null in a field of vLLM's, and says why."""

    def check(value: Any) -> Any:
        if value is not None and (value != supported or type(value) is not type(supported)):
            raise ValueError(f"{why}; leave it out")
        return value

    return AfterValidator(check)


def _not_zero(tokens: int) -> int:
    if tokens == 0:
        raise ValueError("0 would leave nothing of a text; send -1 for the most tokens that are served")
    return tokens


_NOT_ZERO = AfterValidator(_not_zero)
_VLLM: Any = Field(
    default=None,
    description="A field of vLLM's API, accepted with the value for HMI's only behaviour.",
)


class ClassifyRequest(BaseModel):
    """Texts for one model, or for several (fan-out)."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName | None = Field(default=None, description="Name of one of your models.")
    models: Annotated[list[ModelName], STOP_AT_FIRST_ERROR] | None = Field(
        default=None, description="Several of them: every text goes through each, in one batch."
    )
    input: UnicodeText | Annotated[list[UnicodeText | _Words], STOP_AT_FIRST_ERROR] = Field(
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
        default=None, pattern="^[ -~]*$", description="The response's id ends in it."
    )
    user: str | None = Field(default=None, description="Your end user; accepted and not used.")

    add_special_tokens: Annotated[
        Any, _accept_only(True, "every text has its opening and closing tokens here")
    ] = _VLLM
    cache_salt: Annotated[
        Any, _accept_only(None, "results computed from texts are shared within a Domain here")
    ] = _VLLM
    messages: Annotated[Any, _accept_only(None, "chats are not served here, texts in input are")] = _VLLM
    mm_processor_kwargs: Annotated[Any, _accept_only(None, "only texts are served here")] = _VLLM
    padding: Annotated[Any, _accept_only("do_not_pad", "texts are not padded to a length here")] = _VLLM
    priority: Annotated[Any, _accept_only(0, "requests have no priority here")] = _VLLM
    use_activation: Annotated[Any, _accept_only(True, "answers are probabilities here")] = _VLLM

    @property
    def texts(self) -> list[Text]:
        """The texts, in order."""
        return [self.input] if isinstance(self.input, str) else list(self.input)

    @property
    def requested_models(self) -> list[str]:
        """The models, ``model`` first."""
        return [*([self.model] if self.model is not None else []), *(self.models or [])]

    @property
    def truncate(self) -> Truncation | None:
        """How to cut long texts; None: they are refused."""
        if self.truncate_prompt_tokens is None:
            return None
        return Truncation(tokens=self.truncate_prompt_tokens, side=self.truncation_side or "right")


class Usage(BaseModel):
    """Tokens, as OpenAI counts them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class Classification(BaseModel):
    """The result for one text: label and probs for sequence tasks, tokens and entities for token tasks."""

    index: int
    label: str | None = None
    probs: list[float] | None = Field(default=None, description="In the order of labels; they sum to 1.")
    num_classes: int
    tokens: list[TokenLabel] | None = None
    entities: list[TokenLabel] | None = Field(default=None, description="Tokens merged into entities.")


class ClassifyResponse(BaseModel):
    """One model's result."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    labels: list[str] = Field(description="Names of the classes, in the order of probs.")
    data: list[Classification]
    usage: Usage


class ModelClassifications(BaseModel):
    """One model's part of a fan-out: data, or an error."""

    model: str
    labels: list[str] | None = None
    data: list[Classification] | None = None
    usage: Usage | None = None
    error: ErrorDetail | None = None


class FanOutResponse(BaseModel):
    """The results of several models, in the order of the request."""

    id: str
    object: Literal["list"] = "list"
    created: int
    models: list[ModelClassifications]
    usage: Usage


def add_classify(
    router: APIRouter, inference: Inference, tenant_from_key: Callable[[Request], Awaitable[Identity]]
) -> None:
    """Add the endpoint."""

    async def classify(
        body: ClassifyRequest, identity: Annotated[Identity, Depends(tenant_from_key)]
    ) -> Response:
        """Classify texts with one model, in vLLM's format; with `models`, with each of several models.

        In a fan-out a model that fails has an `error` beside the results of the others; if all fail, the
        response is the first model's error.
        """
        result = await inference.infer(identity, body.requested_models, body.texts, truncate=body.truncate)
        result.raise_if_all_failed()
        response = _single(result, body) if body.models is None else _fan_out(result, body)
        # Returned as a Response, so that FastAPI does not validate it a second time.
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    router.add_api_route(
        "/classify",
        classify,
        methods=["POST"],
        summary="Classify texts",
        response_model=ClassifyResponse | FanOutResponse,
        route_class_override=direct_route(json_reader(ClassifyRequest), tenant_from_key),
    )


def _single(result: InferenceResult, body: ClassifyRequest) -> ClassifyResponse:
    model = result.models[0]
    return ClassifyResponse(
        id=_id(result, body),
        created=int(result.created.timestamp()),
        model=model.model,
        labels=model.results[0].labels,
        data=_items(model, body.texts),
        usage=_usage(model.prompt_tokens),
    )


def _fan_out(result: InferenceResult, body: ClassifyRequest) -> FanOutResponse:
    texts = body.texts
    return FanOutResponse(
        id=_id(result, body),
        created=int(result.created.timestamp()),
        models=[_part(model, texts) for model in result.models],
        usage=_usage(sum(model.prompt_tokens for model in result.models)),
    )


def _part(model: ModelResult, texts: Sequence[Text]) -> ModelClassifications:
    if model.failure is not None:
        return ModelClassifications(model=model.model, error=model.failure.detail)
    return ModelClassifications(
        model=model.model,
        labels=model.results[0].labels,
        data=_items(model, texts),
        usage=_usage(model.prompt_tokens),
    )


def _items(model: ModelResult, texts: Sequence[Text]) -> list[Classification]:
    item = _token_item if model.task_type is TaskType.TOKEN_CLASSIFICATION else _sequence_item
    return [item(index, texts[index], result) for index, result in enumerate(model.results)]


def _sequence_item(index: int, _text: Text, result: RowResult) -> Classification:
    return Classification(
        index=index, label=best_label(result), probs=result.scores, num_classes=len(result.scores)
    )


def _token_item(index: int, text: Text, result: RowResult) -> Classification:
    return Classification(
        index=index,
        num_classes=len(result.labels),
        tokens=result.tokens,
        entities=merge_entities(text, result),
    )


def _id(result: InferenceResult, body: ClassifyRequest) -> str:
    return f"classify-{body.request_id or result.request_id}"


def _usage(tokens: int) -> Usage:
    return Usage(prompt_tokens=tokens, total_tokens=tokens)
