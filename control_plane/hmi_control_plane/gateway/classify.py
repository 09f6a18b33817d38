"""``POST /classify`` as vLLM speaks it, with ``models`` for fan-out and tokens for token tasks."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from hmi_api.internal.inference import RowResult
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.auth import Identity
from hmi_control_plane.gateway.classify_schemas import (
    Classification,
    ClassifyRequest,
    ClassifyResponse,
    FanOutResponse,
    ModelClassifications,
    Usage,
)
from hmi_control_plane.gateway.direct import direct_route, json_reader
from hmi_control_plane.gateway.entities import merge_entities
from hmi_control_plane.gateway.inference import Answer, Inference, ModelAnswer, Text, best_label


def add_classify(
    router: APIRouter, inference: Inference, tenant_from_key: Callable[[Request], Awaitable[Identity]]
) -> None:
    """Add the endpoint."""

    async def classify(
        body: ClassifyRequest, identity: Annotated[Identity, Depends(tenant_from_key)]
    ) -> Response:
        """Answer with one model's classes in vLLM's form; with `models`, with each model's under its name.

        In a fan-out a model that fails has an `error` while the others answer; when all fail, the answer is
        the first one's error.
        """
        answer = await inference.answer(identity, body.asked_models, body.texts, truncate=body.truncate)
        answer.require_any()
        response = _one(answer, body) if body.models is None else _fan_out(answer, body)
        # As a Response it is not validated a second time: it was built from validated parts just now.
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    router.add_api_route(
        "/classify",
        classify,
        methods=["POST"],
        summary="Classify texts",
        response_model=ClassifyResponse | FanOutResponse,
        route_class_override=direct_route(json_reader(ClassifyRequest), tenant_from_key),
    )


def _one(answer: Answer, body: ClassifyRequest) -> ClassifyResponse:
    model = answer.models[0]
    return ClassifyResponse(
        id=_id(answer, body),
        created=int(answer.created.timestamp()),
        model=model.model,
        labels=model.results[0].labels,
        data=_items(model, body.texts),
        usage=_usage(model.prompt_tokens),
    )


def _fan_out(answer: Answer, body: ClassifyRequest) -> FanOutResponse:
    texts = body.texts
    return FanOutResponse(
        id=_id(answer, body),
        created=int(answer.created.timestamp()),
        models=[_part(model, texts) for model in answer.models],
        usage=_usage(sum(model.prompt_tokens for model in answer.models)),
    )


def _part(model: ModelAnswer, texts: Sequence[Text]) -> ModelClassifications:
    if model.failure is not None:
        return ModelClassifications(model=model.model, error=model.failure.detail)
    return ModelClassifications(
        model=model.model,
        labels=model.results[0].labels,
        data=_items(model, texts),
        usage=_usage(model.prompt_tokens),
    )


def _items(model: ModelAnswer, texts: Sequence[Text]) -> list[Classification]:
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


def _id(answer: Answer, body: ClassifyRequest) -> str:
    return f"classify-{body.request_id or answer.request_id}"


def _usage(tokens: int) -> Usage:
    return Usage(prompt_tokens=tokens, total_tokens=tokens)
