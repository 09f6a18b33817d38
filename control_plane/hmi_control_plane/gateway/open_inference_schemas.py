"""Bodies of the Open Inference Protocol, with Triton's extension for binary tensors."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StrictBool, StrictInt, model_validator

from hmi_control_plane.gateway.text import FIRST_FAULT, WELL_FORMED

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
