"""The Open Inference Protocol (``/v2``), as KServe and Triton speak it: texts in as BYTES, scores out.

Sequence tasks answer ``label`` (BYTES, one a text), ``scores`` (FP32, texts x classes) and ``labels`` (BYTES,
one a class); token tasks ``tokens`` and ``entities`` (BYTES, one JSON array a text).
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from hmi_api.task_adapter import TaskType
from hmi_api.wire import TokenLabel
from hmi_control_plane.auth import Identity
from hmi_control_plane.gateway.direct import direct_route
from hmi_control_plane.gateway.entities import merge_entities
from hmi_control_plane.gateway.failures import InferenceFailed, not_loaded
from hmi_control_plane.gateway.inference import Inference, ModelAnswer, Text, best_label
from hmi_control_plane.gateway.text import FIRST_FAULT, WELL_FORMED, is_well_formed

_INPUT = "text"
_OUTPUTS = {
    TaskType.SEQUENCE_CLASSIFICATION: [
        ("label", "BYTES", [-1]),
        ("scores", "FP32", [-1, -1]),
        ("labels", "BYTES", [-1]),
    ],
    TaskType.TOKEN_CLASSIFICATION: [("tokens", "BYTES", [-1]), ("entities", "BYTES", [-1])],
}


class TensorMetadata(BaseModel):
    """A tensor's name, type and shape; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str = "hmi"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str = "hmi"
    version: str
    extensions: list[str] = Field(default_factory=list)


class InferInput(BaseModel):
    """The tensor ``text``."""

    model_config = ConfigDict(extra="ignore")

    name: str
    datatype: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=8)
    data: list[Any]


class RequestedOutput(BaseModel):
    """An output that is wanted."""

    model_config = ConfigDict(extra="ignore")

    name: str


class InferBody(BaseModel):
    """A request; parameters are accepted and not used."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(max_length=200), WELL_FORMED] | None = None
    inputs: Annotated[list[InferInput], FIRST_FAULT]
    outputs: Annotated[list[RequestedOutput], FIRST_FAULT] | None = None


class OutputTensor(BaseModel):
    """One output."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str] | list[float]


class InferAnswer(BaseModel):
    """The answer."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class Ready(BaseModel):
    """Whether something can answer."""

    name: str | None = None
    ready: bool


class Live(BaseModel):
    """That the server is alive."""

    live: bool = True


def add_open_inference(
    router: APIRouter,
    inference: Inference,
    tenant_from_key: Callable[[Request], Awaitable[Identity]],
    is_ready: Callable[[], Awaitable[bool]],
) -> None:
    """Add the protocol's endpoints; ``is_ready`` says whether requests can be answered at all."""

    @router.get("/v2", summary="Server metadata")
    async def server() -> ServerMetadata:
        return ServerMetadata(version=version("hmi"))

    @router.get("/v2/health/live", summary="Liveness")
    async def live() -> Live:
        return Live()

    @router.get("/v2/health/ready", summary="Readiness")
    async def ready(response: Response) -> Ready:
        answer = Ready(ready=await is_ready())
        response.status_code = 200 if answer.ready else 503
        return answer

    @router.get("/v2/models/{model:path}/ready", summary="Whether a model is loaded")
    async def model_ready(model: str, identity: Annotated[Identity, Depends(tenant_from_key)]) -> Ready:
        route = await inference.route(identity.tenant, model)
        if not route.runtimes:
            raise not_loaded(model)
        return Ready(name=model, ready=True)

    async def infer(
        model: str, body: InferBody, identity: Annotated[Identity, Depends(tenant_from_key)]
    ) -> Response:
        route = await inference.route(identity.tenant, model)
        texts, wanted = _texts(body), _wanted(body, route.task_type)
        answer = await inference.answer(identity, [model], texts)
        answer.require_any()
        outputs = _outputs(answer.models[0], texts)
        response = InferAnswer(
            model_name=model,
            model_version=str(answer.models[0].results[0].version or ""),
            id=body.id or answer.request_id,
            outputs=[outputs[name] for name in wanted],
        )
        return Response(response.model_dump_json(), media_type="application/json")

    router.add_api_route(
        "/v2/models/{model:path}/infer",
        infer,
        methods=["POST"],
        summary="Infer",
        response_model=InferAnswer,
        route_class_override=direct_route(InferBody, tenant_from_key),
    )

    @router.get("/v2/models/{model:path}", summary="Model metadata")
    async def metadata(model: str, identity: Annotated[Identity, Depends(tenant_from_key)]) -> ModelMetadata:
        route = await inference.route(identity.tenant, model)
        outputs = _OUTPUTS.get(route.task_type, [])
        return ModelMetadata(
            name=model,
            versions=[] if route.version is None else [str(route.version)],
            inputs=[TensorMetadata(name=_INPUT, datatype="BYTES", shape=[-1])],
            outputs=[TensorMetadata(name=name, datatype=kind, shape=shape) for name, kind, shape in outputs],
        )


def _texts(body: InferBody) -> list[Text]:
    """Return the texts of the one input; raises InferenceFailed (400) for other tensors."""
    if len(body.inputs) != 1 or body.inputs[0].name != _INPUT or body.inputs[0].datatype != "BYTES":
        raise InferenceFailed(
            400, "InvalidInputs", 'Send exactly one input, named "text", of datatype BYTES.', param="inputs"
        )
    tensor = body.inputs[0]
    texts = _flat(tensor.data)
    size = 1
    for length in tensor.shape:
        size *= length
    if size != len(texts):
        raise InferenceFailed(
            400,
            "InvalidShape",
            f"shape {tensor.shape} does not hold {len(texts)} texts.",
            param="inputs.0.shape",
        )
    return list(texts)


def _flat(data: Sequence[Any]) -> list[str]:
    """Return a possibly nested array's strings in order; raises InferenceFailed (400) for other elements."""
    flat: list[str] = []
    left = list(reversed(data))
    while left:
        item = left.pop()
        if isinstance(item, list):
            left.extend(reversed(item))
        elif isinstance(item, str) and is_well_formed(item):
            flat.append(item)
        else:
            raise InferenceFailed(
                400, "InvalidData", "data holds something that is no text.", param="inputs.0.data"
            )
    return flat


def _wanted(body: InferBody, task_type: TaskType) -> list[str]:
    """Return the names of the outputs to give; raises InferenceFailed (400) for one that is not there."""
    known = [name for name, _, _ in _OUTPUTS.get(task_type, [])]
    wanted = [output.name for output in body.outputs or []] or known
    for name in wanted:
        if name not in known:
            message = f'There is no output "{name}"; there are {", ".join(known)}.'
            raise InferenceFailed(400, "UnknownOutput", message, param="outputs")
    return wanted


def _outputs(answer: ModelAnswer, texts: Sequence[Text]) -> dict[str, OutputTensor]:
    results = answer.results
    if answer.task_type is TaskType.TOKEN_CLASSIFICATION:
        entities = [merge_entities(text, result) for text, result in zip(texts, results, strict=True)]
        tensors = [
            _bytes("tokens", [_json(result.tokens) for result in results]),
            _bytes("entities", [_json(found) for found in entities]),
        ]
    else:
        scores = [score for result in results for score in result.scores]
        shape = [len(results), len(results[0].scores)]
        tensors = [
            _bytes("label", [best_label(result) for result in results]),
            OutputTensor(name="scores", datatype="FP32", shape=shape, data=scores),
            _bytes("labels", results[0].labels),
        ]
    return {tensor.name: tensor for tensor in tensors}


def _bytes(name: str, values: list[str]) -> OutputTensor:
    return OutputTensor(name=name, datatype="BYTES", shape=[len(values)], data=values)


def _json(labels: Sequence[TokenLabel]) -> str:
    return json.dumps([label.model_dump() for label in labels], ensure_ascii=False)
