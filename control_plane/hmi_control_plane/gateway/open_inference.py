"""The Open Inference Protocol (``/v2``) of KServe and Triton: texts as BYTES in, scores out.

Sequence tasks return ``label`` (BYTES, one a text), ``scores`` (FP32, texts x classes) and ``labels``
(BYTES, one a class); token tasks ``tokens`` and ``entities`` (BYTES, one JSON array a text). Tensors may be
binary data after the JSON, as in Triton's extension. Only the current version of a model can be requested.
"""

from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version as version_of
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.gateway.failures import InferenceFailed, not_loaded, unknown_version
from hmi_control_plane.gateway.inference import Inference
from hmi_control_plane.gateway.open_inference_messages import (
    BINARY_EXTENSION,
    INPUTS,
    OUTPUTS,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadata,
    ModelReady,
    OutputTensor,
    ProtocolError,
    RequestedOutput,
    ServerLive,
    ServerMetadata,
    ServerReady,
    input_texts,
    output_tensors,
    requested_outputs,
    to_binary,
)
from hmi_control_plane.gateway.requests import InferenceRoute, direct_route, parse_body, read_body
from hmi_control_plane.gateway.routes import Route

_JSON_LENGTH_HEADER = "Inference-Header-Content-Length"


class _ModelConvertor(PathConvertor):
    """``adapter`` or ``tenant/adapter`` in a path, without the protocol's suffixes."""

    regex = r"[^/]+(?:/(?!(?:infer|ready|versions)(?:/|$))[^/]+)?"


register_url_convertor("model", _ModelConvertor())


def build_open_inference(
    inference: Inference,
    tenant_from_key: Callable[[Request], Awaitable[Identity]],
    require_ready: Callable[[], Awaitable[None]],
) -> APIRouter:
    """Return the protocol's endpoints; ``require_ready`` raises NotReady while the process is not ready."""
    router = APIRouter(
        route_class=InferenceRoute,
        responses={"default": {"model": ProtocolError, "description": "An error, in the protocol's format."}},
    )
    _add_server(router, require_ready)
    _add_model(router, inference, tenant_from_key)
    _add_infer(router, inference, tenant_from_key)
    return router


def _add_server(router: APIRouter, require_ready: Callable[[], Awaitable[None]]) -> None:
    @router.get("/v2/", include_in_schema=False)
    @router.get("/v2", summary="Server metadata")
    async def server() -> ServerMetadata:
        return ServerMetadata(version=version_of("hmi"), extensions=[BINARY_EXTENSION])

    @router.get("/v2/health/live", summary="Liveness")
    async def live() -> ServerLive:
        return ServerLive()

    @router.get("/v2/health/ready", summary="Readiness")
    async def ready() -> ServerReady:
        await require_ready()
        return ServerReady()


def _add_model(
    router: APIRouter, inference: Inference, tenant_from_key: Callable[[Request], Awaitable[Identity]]
) -> None:
    @router.get("/v2/models/{model:model}/versions/{version}/ready", summary="Whether a version is loaded")
    async def version_ready(
        model: str, version: str, identity: Annotated[Identity, Depends(tenant_from_key)]
    ) -> ModelReady:
        route = await _route(inference, identity, model, version)
        if route.version not in route.loaded:
            raise not_loaded(model, route)
        return ModelReady(name=model)

    @router.get("/v2/models/{model:model}/ready", summary="Whether a model is loaded")
    async def model_ready(model: str, identity: Annotated[Identity, Depends(tenant_from_key)]) -> ModelReady:
        route = await _route(inference, identity, model)
        if not route.runtimes:
            raise not_loaded(model, route)
        return ModelReady(name=model)

    @router.get("/v2/models/{model:model}/versions/{version}", summary="A version's metadata")
    async def version_metadata(
        model: str, version: str, identity: Annotated[Identity, Depends(tenant_from_key)]
    ) -> ModelMetadata:
        return _metadata(model, await _route(inference, identity, model, version))

    @router.get("/v2/models/{model:model}", summary="Model metadata")
    async def metadata(model: str, identity: Annotated[Identity, Depends(tenant_from_key)]) -> ModelMetadata:
        return _metadata(model, await _route(inference, identity, model))


def _add_infer(
    router: APIRouter, inference: Inference, tenant_from_key: Callable[[Request], Awaitable[Identity]]
) -> None:
    async def infer(
        model: str, body: ModelInferRequest, identity: Annotated[Identity, Depends(tenant_from_key)]
    ) -> Response:
        return await _infer(inference, identity, body, model)

    async def infer_version(
        model: str,
        version: str,
        body: ModelInferRequest,
        identity: Annotated[Identity, Depends(tenant_from_key)],
    ) -> Response:
        return await _infer(inference, identity, body, model, version)

    for path, endpoint, summary in (
        ("/v2/models/{model:model}/infer", infer, "Infer"),
        ("/v2/models/{model:model}/versions/{version}/infer", infer_version, "Infer by a version"),
    ):
        router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            summary=summary,
            response_model=ModelInferResponse,
            route_class_override=direct_route(_read_infer, tenant_from_key),
        )


async def _read_infer(request: Request) -> ModelInferRequest:
    """Return the request: JSON of the length that the header gives, followed by binary data of tensors."""
    raw = await read_body(request)
    header = request.headers.get(_JSON_LENGTH_HEADER)
    if header is None:
        return parse_body(raw, ModelInferRequest)
    length = int(header) if header.isascii() and header.isdigit() and len(header) < 20 else -1
    if not 0 < length <= len(raw):
        message = (
            f"{_JSON_LENGTH_HEADER} must be the length of the JSON, at most the body's {len(raw)} bytes."
        )
        raise InferenceFailed(400, "InvalidHeader", message)
    return parse_body(raw[:length], ModelInferRequest).with_tail(raw[length:])


async def _infer(
    inference: Inference, identity: Identity, body: ModelInferRequest, model: str, version: str | None = None
) -> Response:
    route = await _route(inference, identity, model, version)
    texts, requested = input_texts(body), requested_outputs(body, route.task_type)
    result = await inference.infer(
        identity, [model], texts, version=None if version is None else route.version
    )
    result.raise_if_all_failed()
    outputs = output_tensors(result.models[0], texts)
    response = ModelInferResponse(
        model_name=model,
        model_version=str(result.models[0].results[0].version or ""),
        id=result.request_id if body.id is None else body.id,
        outputs=[outputs[output.name] for output in requested],
    )
    return _response(response, [_is_binary(body, output) for output in requested])


def _is_binary(body: ModelInferRequest, output: RequestedOutput) -> bool:
    wanted = output.parameters.binary_data
    return body.parameters.binary_data_output if wanted is None else wanted


def _response(body: ModelInferResponse, binary: Sequence[bool]) -> Response:
    """Return the response; outputs marked in ``binary`` follow the JSON."""
    if not any(binary):
        return Response(body.model_dump_json(exclude_none=True), media_type="application/json")
    outputs: list[OutputTensor] = []
    tail: list[bytes] = []
    for tensor, moved in zip(body.outputs, binary, strict=True):
        if moved:
            bare, data = to_binary(tensor)
            outputs.append(bare)
            tail.append(data)
        else:
            outputs.append(tensor)
    json_part = body.model_copy(update={"outputs": outputs}).model_dump_json(exclude_none=True).encode()
    return Response(
        b"".join([json_part, *tail]),
        media_type="application/octet-stream",
        headers={_JSON_LENGTH_HEADER: str(len(json_part))},
    )


async def _route(inference: Inference, identity: Identity, model: str, version: str | None = None) -> Route:
    """Return a model's route. Raise InferenceFailed (404) for an unknown model or version."""
    route = await inference.route(identity, model)
    if version is not None and version != str(route.version):
        raise unknown_version(model, version, route.version)
    return route


def _metadata(model: str, route: Route) -> ModelMetadata:
    return ModelMetadata(
        name=model,
        versions=[] if route.version is None else [str(route.version)],
        inputs=INPUTS,
        outputs=OUTPUTS.get(route.task_type, []),
    )
