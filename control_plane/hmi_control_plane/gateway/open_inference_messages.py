"""Bodies of the Open Inference Protocol: its messages, and texts and results as tensors.

Tensors are JSON, or binary data after the JSON, as in Triton's extension.
"""

import json
import struct
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, StrictInt, model_validator

from hmi_api.internal.inference import TokenLabel
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.gateway.failures import InferenceFailed
from hmi_control_plane.gateway.inference import ModelResult, Text, best_label, merge_entities
from hmi_control_plane.gateway.requests import STOP_AT_FIRST_ERROR, VALID_UNICODE, is_valid_unicode

_UNSUPPORTED = frozenset(
    {
        "classification",
        "sequence_end",
        "sequence_id",
        "sequence_start",
        "shared_memory_byte_size",
        "shared_memory_offset",
        "shared_memory_region",
    }
)
"""Parameters of Triton's extensions that change the result or refer to data outside the request."""


class ProtocolError(BaseModel):
    """The body of every error response."""

    error: str


class TensorMetadata(BaseModel):
    """A tensor's name, type and shape; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The inputs and outputs of a model."""

    name: str
    versions: list[str]
    platform: str = "hmi"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(BaseModel):
    """Name and version of the server."""

    name: str = "hmi"
    version: str
    extensions: list[str]


class ServerReady(BaseModel):
    """The server is ready; the protocol has the field live here too."""

    live: bool = True
    ready: bool = True


class ServerLive(BaseModel):
    """The server is alive."""

    live: bool = True


class ModelReady(BaseModel):
    """The model is ready."""

    name: str
    ready: bool = True


class _Parameters(BaseModel):
    """Parameters. Unknown ones are ignored, unsupported ones refused."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, given: Any) -> Any:
        unsupported = _UNSUPPORTED & given.keys() if isinstance(given, dict) else ()
        if unsupported:
            raise ValueError(f"{min(unsupported)} is not supported here")
        return given


class RequestParameters(_Parameters):
    """Parameters of a request."""

    binary_data_output: StrictBool = False


class InputParameters(_Parameters):
    """Parameters of an input."""

    binary_data_size: Annotated[StrictInt, Field(ge=0)] | None = None


class OutputParameters(_Parameters):
    """Parameters of an output."""

    binary_data: StrictBool | None = None


class InferInput(BaseModel):
    """The tensor ``text``: its data here, or after the JSON."""

    name: str
    datatype: str
    shape: list[Annotated[StrictInt, Field(ge=0, lt=2**64)]]
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    """An output that the response must have."""

    name: str
    parameters: OutputParameters = OutputParameters()


class ModelInferRequest(BaseModel):
    """A request."""

    id: Annotated[str, Field(max_length=200), VALID_UNICODE] | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InferInput], STOP_AT_FIRST_ERROR]
    outputs: Annotated[list[RequestedOutput], STOP_AT_FIRST_ERROR] | None = None

    _tail: bytes = PrivateAttr(default=b"")

    @property
    def tail(self) -> bytes:
        """The binary data of inputs, which follows the JSON."""
        return self._tail

    def with_tail(self, tail: bytes) -> "ModelInferRequest":
        """Attach the binary data that followed the JSON."""
        self._tail = tail
        return self


class OutputTensor(BaseModel):
    """One output: its data here, or after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[str] | list[float] | None = None


class ModelInferResponse(BaseModel):
    """A response."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


BINARY_EXTENSION = "binary_tensor_data"
INPUTS = [TensorMetadata(name="text", datatype="BYTES", shape=[-1])]
OUTPUTS = {
    TaskType.SEQUENCE_CLASSIFICATION: [
        TensorMetadata(name="label", datatype="BYTES", shape=[-1]),
        TensorMetadata(name="scores", datatype="FP32", shape=[-1, -1]),
        TensorMetadata(name="labels", datatype="BYTES", shape=[-1]),
    ],
    TaskType.TOKEN_CLASSIFICATION: [
        TensorMetadata(name="tokens", datatype="BYTES", shape=[-1]),
        TensorMetadata(name="entities", datatype="BYTES", shape=[-1]),
    ],
}
_LENGTH = struct.Struct("<I")


def input_texts(body: ModelInferRequest) -> list[Text]:
    """Return the texts of the single input. Raise InferenceFailed (400) for other tensors."""
    tensor = _only_input(body)
    _check_shape(tensor)
    size = tensor.parameters.binary_data_size
    if size is None:
        if body.tail:
            raise _invalid_tensor(
                f"{len(body.tail)} bytes follow the JSON, and no input has a binary_data_size."
            )
        if tensor.data is None:
            raise _invalid_tensor("inputs.0.data is missing.")
        texts = _from_json(tensor.data, tensor.shape)
    else:
        if tensor.data is not None:
            raise _invalid_tensor("inputs.0 has both data and a binary_data_size; send one of them.")
        if size != len(body.tail):
            raise _invalid_tensor(
                f"inputs.0 has a binary_data_size of {size}; {len(body.tail)} bytes follow the JSON."
            )
        texts = _from_binary(body.tail)
    if prod(tensor.shape) != len(texts):
        raise _invalid_tensor(f"inputs.0.shape is {tensor.shape}; the data has {len(texts)} texts.")
    return list(texts)


def _only_input(body: ModelInferRequest) -> InferInput:
    if len(body.inputs) != 1:
        raise _invalid_tensor(f'inputs has {len(body.inputs)} tensors; send one, named "text".')
    tensor = body.inputs[0]
    if tensor.name != "text":
        raise _invalid_tensor(f'There is no input "{tensor.name}"; send one named "text".')
    if tensor.datatype != "BYTES":
        raise _invalid_tensor(f'inputs.0.datatype is "{tensor.datatype}"; it must be BYTES.')
    return tensor


def _check_shape(tensor: InferInput) -> None:
    """Accept only the shapes ``[texts]`` and ``[texts, 1]``, which some clients send for a column."""
    rank = len(tensor.shape)
    if rank != 1 and not (rank == 2 and tensor.shape[1] == 1):
        raise _invalid_tensor(f"inputs.0.shape is {tensor.shape}; it must be [texts], or [texts, 1].")


def _from_json(data: Sequence[Any], shape: Sequence[int]) -> list[str]:
    """Return the elements of ``data``, which is flat, or nested as in ``shape``."""
    if len(shape) == 2 and any(isinstance(item, list) for item in data):
        data = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
    for index, item in enumerate(data):
        if isinstance(item, list):
            raise _invalid_tensor(
                f"inputs.0.data.{index} is a list, which does not fit the shape {list(shape)}."
            )
        if not isinstance(item, str):
            raise _invalid_tensor(f"inputs.0.data.{index} must be a string.")
        if not is_valid_unicode(item):
            raise _invalid_tensor(f"inputs.0.data.{index} has a lone surrogate and is not valid Unicode.")
    return list(data)


def _from_binary(data: bytes) -> list[str]:
    """Return the elements of a BYTES tensor: a little-endian length in 4 bytes, then as many bytes, each."""
    texts: list[str] = []
    offset = 0
    while offset < len(data):
        if offset + _LENGTH.size > len(data):
            raise _invalid_tensor(
                f"The binary data of inputs.0 is cut off in the length of text {len(texts)}."
            )
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if offset + length > len(data):
            raise _invalid_tensor(
                f"The binary data of inputs.0 is cut off in text {len(texts)}, of {length} bytes."
            )
        try:
            texts.append(data[offset : offset + length].decode())
        except UnicodeDecodeError as error:
            raise _invalid_tensor(f"Text {len(texts)} of inputs.0 is not UTF-8.") from error
        offset += length
    return texts


def requested_outputs(body: ModelInferRequest, task_type: TaskType) -> list[RequestedOutput]:
    """Return the outputs to send. Raise InferenceFailed (400) for unknown or repeated ones."""
    known = [output.name for output in OUTPUTS.get(task_type, [])]
    requested = body.outputs or [RequestedOutput(name=name) for name in known]
    names = [output.name for output in requested]
    for index, name in enumerate(names):
        if name not in known:
            raise _invalid_tensor(f'There is no output "{name}"; there are {", ".join(known)}.')
        if name in names[:index]:
            raise _invalid_tensor(f'outputs names "{name}" twice.')
    return requested


def output_tensors(result: ModelResult, texts: Sequence[Text]) -> dict[str, OutputTensor]:
    """Return all outputs of a model by name, with their data for JSON."""
    rows = result.results
    if result.task_type is TaskType.TOKEN_CLASSIFICATION:
        entities = [merge_entities(text, row) for text, row in zip(texts, rows, strict=True)]
        tensors = [
            _bytes_tensor("tokens", [_json(row.tokens) for row in rows]),
            _bytes_tensor("entities", [_json(found) for found in entities]),
        ]
    else:
        scores = [score for row in rows for score in row.scores]
        shape = [len(rows), len(rows[0].scores)]
        tensors = [
            _bytes_tensor("label", [best_label(row) for row in rows]),
            OutputTensor(name="scores", datatype="FP32", shape=shape, data=scores),
            _bytes_tensor("labels", rows[0].labels),
        ]
    return {tensor.name: tensor for tensor in tensors}


def to_binary(tensor: OutputTensor) -> tuple[OutputTensor, bytes]:
    """Return a tensor without its data, and the data in binary, which follows the JSON."""
    data = tensor.data or []
    if tensor.datatype == "FP32":
        packed = struct.pack(f"<{len(data)}f", *data)
    else:
        encoded = [str(value).encode() for value in data]
        packed = b"".join(part for value in encoded for part in (_LENGTH.pack(len(value)), value))
    parameters = {"binary_data_size": len(packed)}
    return tensor.model_copy(update={"parameters": parameters, "data": None}), packed


def _bytes_tensor(name: str, values: list[str]) -> OutputTensor:
    return OutputTensor(name=name, datatype="BYTES", shape=[len(values)], data=values)


def _json(labels: Sequence[TokenLabel]) -> str:
    return json.dumps([label.model_dump() for label in labels], ensure_ascii=False)


def _invalid_tensor(message: str) -> InferenceFailed:
    return InferenceFailed(400, "InvalidTensor", message)
