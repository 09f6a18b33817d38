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
from hmi_control_plane.gateway.inference import ModelAnswer, Text, best_label, merge_entities
from hmi_control_plane.gateway.requests import FIRST_FAULT, WELL_FORMED, is_well_formed

_NOT_SERVED = frozenset(
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
"""Parameters of Triton's extensions that ask for another answer, or for data from elsewhere."""


class ProtocolError(BaseModel):
    """Every answer that is not a success."""

    error: str


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
    extensions: list[str]


class ServerReady(BaseModel):
    """That requests are answered; the protocol names the field live here too."""

    live: bool = True
    ready: bool = True


class ServerLive(BaseModel):
    """That the server is alive."""

    live: bool = True


class ModelReady(BaseModel):
    """That a model can answer."""

    name: str
    ready: bool = True


class _Parameters(BaseModel):
    """Parameters; those that are not known change nothing, unless they ask for what is not served."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_served(cls, given: Any) -> Any:
        asked = _NOT_SERVED & given.keys() if isinstance(given, dict) else ()
        if asked:
            raise ValueError(f"{min(asked)} is not supported here")
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
    """An output that is wanted."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferBody(BaseModel):
    """A request."""

    id: Annotated[str, Field(max_length=200), WELL_FORMED] | None = None
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[list[InferInput], FIRST_FAULT]
    outputs: Annotated[list[RequestedOutput], FIRST_FAULT] | None = None

    _tail: bytes = PrivateAttr(default=b"")

    @property
    def tail(self) -> bytes:
        """What followed the JSON: the binary data of inputs."""
        return self._tail

    def with_tail(self, tail: bytes) -> "InferBody":
        """Attach what followed the JSON."""
        self._tail = tail
        return self


class OutputTensor(BaseModel):
    """One output: its data here, or after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[str] | list[float] | None = None


class InferAnswer(BaseModel):
    """The answer."""

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


def texts_of(body: InferBody) -> list[Text]:
    """Return the texts of the one input; raises InferenceFailed (400) for other tensors."""
    tensor = _only_input(body)
    _check_shape(tensor)
    size = tensor.parameters.binary_data_size
    if size is None:
        if body.tail:
            raise _wrong(f"{len(body.tail)} bytes follow the JSON, and no input has a binary_data_size.")
        if tensor.data is None:
            raise _wrong("inputs.0.data is missing.")
        texts = _from_json(tensor.data, tensor.shape)
    else:
        if tensor.data is not None:
            raise _wrong("inputs.0 has both data and a binary_data_size; send one of them.")
        if size != len(body.tail):
            raise _wrong(
                f"inputs.0 has a binary_data_size of {size}; {len(body.tail)} bytes follow the JSON."
            )
        texts = _from_binary(body.tail)
    if prod(tensor.shape) != len(texts):
        raise _wrong(f"inputs.0.shape is {tensor.shape}; the data holds {len(texts)} texts.")
    return list(texts)


def _only_input(body: InferBody) -> InferInput:
    if len(body.inputs) != 1:
        raise _wrong(f'inputs has {len(body.inputs)} tensors; send one, named "text".')
    tensor = body.inputs[0]
    if tensor.name != "text":
        raise _wrong(f'There is no input "{tensor.name}"; send one named "text".')
    if tensor.datatype != "BYTES":
        raise _wrong(f'inputs.0.datatype is "{tensor.datatype}"; it must be BYTES.')
    return tensor


def _check_shape(tensor: InferInput) -> None:
    """Refuse other shapes than ``[texts]`` and ``[texts, 1]``, as which some clients send a column."""
    rank = len(tensor.shape)
    if rank != 1 and not (rank == 2 and tensor.shape[1] == 1):
        raise _wrong(f"inputs.0.shape is {tensor.shape}; it must be [texts], or [texts, 1].")


def _from_json(data: Sequence[Any], shape: Sequence[int]) -> list[str]:
    """Return the elements of ``data``, which is flat or nested as ``shape`` says."""
    if len(shape) == 2 and any(isinstance(item, list) for item in data):
        data = [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]
    for place, item in enumerate(data):
        if isinstance(item, list):
            raise _wrong(
                f"inputs.0.data.{place} is a list, which the shape {list(shape)} does not have there."
            )
        if not isinstance(item, str):
            raise _wrong(f"inputs.0.data.{place} must be a string.")
        if not is_well_formed(item):
            raise _wrong(f"inputs.0.data.{place} holds half of a surrogate pair and is no valid Unicode.")
    return list(data)


def _from_binary(data: bytes) -> list[str]:
    """Return the elements of a BYTES tensor: each a length in 4 bytes, little-endian, and so many bytes."""
    texts: list[str] = []
    place = 0
    while place < len(data):
        if place + _LENGTH.size > len(data):
            raise _wrong(f"The binary data of inputs.0 is cut off in the length of text {len(texts)}.")
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if place + length > len(data):
            raise _wrong(f"The binary data of inputs.0 is cut off in text {len(texts)}, of {length} bytes.")
        try:
            texts.append(data[place : place + length].decode())
        except UnicodeDecodeError as error:
            raise _wrong(f"Text {len(texts)} of inputs.0 is not UTF-8.") from error
        place += length
    return texts


def wanted_outputs(body: InferBody, task_type: TaskType) -> list[RequestedOutput]:
    """Return the outputs to give; raises InferenceFailed (400) for one that is not there, or asked twice."""
    known = [output.name for output in OUTPUTS.get(task_type, [])]
    wanted = body.outputs or [RequestedOutput(name=name) for name in known]
    names = [output.name for output in wanted]
    for place, name in enumerate(names):
        if name not in known:
            raise _wrong(f'There is no output "{name}"; there are {", ".join(known)}.')
        if name in names[:place]:
            raise _wrong(f'outputs names "{name}" twice.')
    return wanted


def output_tensors(answer: ModelAnswer, texts: Sequence[Text]) -> dict[str, OutputTensor]:
    """Return all outputs of a model's answer by name, with their data as JSON has it."""
    results = answer.results
    if answer.task_type is TaskType.TOKEN_CLASSIFICATION:
        entities = [merge_entities(text, result) for text, result in zip(texts, results, strict=True)]
        tensors = [
            _bytes_tensor("tokens", [_json(result.tokens) for result in results]),
            _bytes_tensor("entities", [_json(found) for found in entities]),
        ]
    else:
        scores = [score for result in results for score in result.scores]
        shape = [len(results), len(results[0].scores)]
        tensors = [
            _bytes_tensor("label", [best_label(result) for result in results]),
            OutputTensor(name="scores", datatype="FP32", shape=shape, data=scores),
            _bytes_tensor("labels", results[0].labels),
        ]
    return {tensor.name: tensor for tensor in tensors}


def moved_to_binary(tensor: OutputTensor) -> tuple[OutputTensor, bytes]:
    """Return a tensor without its data, and the data as it follows the JSON."""
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


def _wrong(message: str) -> InferenceFailed:
    return InferenceFailed(400, "InvalidTensor", message)
