"""Adapter weights: the tensors that one task adds to the frozen upper layers.

An adapter is plain data: no base weights and no modules. Its file is ``adapter.safetensors``. Everything but
tensors (task, labels, digests, activations) is JSON in the file's header, so that one digest covers all, and
is repeated in the artifact's manifest (``AdapterWeights.config``).

Tensors are float32 where an adapter is trained or computed with (``as_float32``). In its file and in the
runtime's host memory, matrices are float16 (``as_stored``, ``half_precision``). Files of earlier versions of
HMI have float32 matrices; they are read and served as they are.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor, nn

from hmi_api.errors import Damaged, InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_api.tag_schemes import TagScheme, scheme_or_plain
from hmi_runtime.adapters.half_precision import halved, halved_factors
from hmi_runtime.models.architecture import MATRICES, NORMS, SUBLAYERS, Sublayer

ADAPTER_FILE = "adapter.safetensors"
FORMAT_VERSION = 1
_LENGTH_BYTES = 8  # of a safetensors file, before the header
STORED_TYPES = (torch.float32, torch.float16)
"""Types of the tensors in a file."""
BottleneckPlacement = Literal["parallel", "sequential"]
Pooling = Literal["first", "mean", "first_and_mean", "token"]
POOLINGS: tuple[Pooling, ...] = ("first", "mean", "first_and_mean", "token")
"""How a head pools the last hidden states."""


@dataclass(frozen=True)
class LoraMatrix:
    """A low-rank difference ``b @ a`` of one matrix (Hu et al., 2021); its scale is folded into ``b``."""

    a: Tensor  # (r, d_in)
    b: Tensor  # (d_out, r)

    @property
    def rank(self) -> int:
        """Rank r of the difference."""
        return self.a.shape[0]


@dataclass(frozen=True)
class Bottleneck:
    """A narrow MLP at a sublayer; its scale is folded into ``up`` and ``up_bias``.

    ``parallel`` (He et al., 2022) reads the sublayer's input and adds to its output; ``sequential``
    (Houlsby et al., 2019) reads the sublayer's output and adds to it, before the residual sum.
    """

    down: Tensor  # (w, D)
    down_bias: Tensor  # (w,)
    up: Tensor  # (D, w)
    up_bias: Tensor  # (D,)
    activation: Literal["relu", "gelu"] = "relu"
    placement: BottleneckPlacement = "parallel"

    @property
    def width(self) -> int:
        """Width w of the narrow layer."""
        return self.down.shape[0]


BOTTLENECK_TENSORS = ("down", "down_bias", "up", "up_bias")


@dataclass(frozen=True)
class LayerAdapter:
    """Changes of an adapter to one layer. Parameters that are absent stay the base's."""

    lora: Mapping[str, LoraMatrix] = field(default_factory=dict)
    """By name of one of ``MATRICES``."""
    bias: Mapping[str, Tensor] = field(default_factory=dict)
    """Whole bias (d_out,) of one of ``MATRICES``, in place of the base's."""
    norms: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Whole weight and bias, both (D,), of one of ``NORMS``, in place of the base's."""
    bottlenecks: Mapping[Sublayer, Bottleneck] = field(default_factory=dict)


@dataclass(frozen=True)
class Dense:
    """The hidden layer of a head, as BERT's pooler or RoBERTa's classification head has it."""

    weight: Tensor  # (h, pooled width)
    bias: Tensor  # (h,)
    activation: Literal["tanh", "relu", "gelu"] = "tanh"


@dataclass(frozen=True)
class Head:
    """Pooling of the last hidden states, an optional dense layer, and one matrix to the logits.

    ``first`` takes the first token, ``mean`` the mean over unpadded tokens, ``first_and_mean`` both side
    by side, ``token`` each token separately.
    """

    pooling: Pooling
    weight: Tensor  # (n labels, pooled width, or h behind a dense layer)
    bias: Tensor  # (n,)
    dense: Dense | None = None


@dataclass(frozen=True)
class AdapterWeights:
    """One task's adapter and head.

    ``layers`` is by absolute index in the base model. ``base_digest`` names the base's weights file and
    ``layers_digest`` the Domain's Layers artifact the adapter was trained on (None: the unsplit base,
    as for an import).
    """

    task: TaskType
    labels: tuple[str, ...]
    layers: Mapping[int, LayerAdapter]
    head: Head
    base_digest: str
    layers_digest: str | None = None
    tag_scheme: TagScheme | None = None
    """The tag scheme of a token task's labels; None to derive it from the labels."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for _, tensor in self.named_tensors())

    @property
    def rank(self) -> int:
        """Largest rank of any matrix; 0 without LoRA."""
        return max((m.rank for layer in self.layers.values() for m in layer.lora.values()), default=0)

    @property
    def bottleneck_width(self) -> int:
        """Largest width of any bottleneck; 0 without one."""
        widths = (b.width for layer in self.layers.values() for b in layer.bottlenecks.values())
        return max(widths, default=0)

    @property
    def entity_scheme(self) -> TagScheme | None:
        """The tag scheme of a token task: ``tag_scheme``, else derived from the labels."""
        if self.task is not TaskType.TOKEN_CLASSIFICATION:
            return None
        return self.tag_scheme or scheme_or_plain(self.labels)

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor with its name in ``adapter.safetensors``."""
        for index, layer in self.layers.items():
            yield from _layer_tensors(f"layers.{index}", layer)
        yield "head.weight", self.head.weight
        yield "head.bias", self.head.bias
        if self.head.dense is not None:
            yield "head.dense.weight", self.head.dense.weight
            yield "head.dense.bias", self.head.dense.bias

    def config(self) -> dict[str, object]:
        """Return everything but tensors as JSON values: the manifest's ``config`` and the file's header."""
        bottlenecks = {
            f"layers.{index}.{place}": {"activation": b.activation, "placement": b.placement}
            for index, layer in self.layers.items()
            for place, b in layer.bottlenecks.items()
        }
        dense = self.head.dense
        return {
            "formatVersion": FORMAT_VERSION,
            "task": self.task.value,
            "labels": list(self.labels),
            "rank": self.rank,
            "pooling": self.head.pooling,
            "denseActivation": dense.activation if dense is not None else None,
            "bottlenecks": bottlenecks,
            "baseDigest": self.base_digest,
            "layersDigest": self.layers_digest,
            "tagScheme": self.tag_scheme.value if self.tag_scheme is not None else None,
        }

    def as_stored(self) -> Self:
        """Return the adapter as its file has it, in host memory: matrices float16, vectors float32.

        A matrix that float16 cannot hold stays float32. See ``half_precision``.
        """
        layers = {index: _stored_layer(layer) for index, layer in self.layers.items()}
        head, dense = self.head, self.head.dense
        if dense is not None:
            dense = replace(dense, weight=halved(dense.weight), bias=_float32(dense.bias))
        head = replace(head, weight=halved(head.weight), bias=_float32(head.bias), dense=dense)
        return replace(self, layers=layers, head=head)

    def as_float32(self) -> Self:
        """Return the adapter with every tensor in float32, to compute with; it shares those that are."""
        return _map_tensors(self, Tensor.float)

    def save(self, folder: Path) -> None:
        """Write ``adapter.safetensors``, ``as_stored``, into ``folder``; the same adapter gives equal bytes.

        An adapter that was loaded from a file of this version gives that file's bytes.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = dict(self.as_stored().named_tensors())
        save_file(tensors, folder / ADAPTER_FILE, metadata={"hmi": json.dumps(self.config(), sort_keys=True)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``adapter.safetensors`` from ``folder``; tensors have the file's types, ``STORED_TYPES``.

        They are in memory, not mapped from the file.

        Raises ``Damaged`` (AdapterUnreadable) when it is missing, truncated or lacks tensors, and
        ``InvalidInput`` (AdapterFormat) when a newer version of HMI wrote it. ``checks.check_adapter`` checks
        whether it fits a base model.
        """
        path = folder / ADAPTER_FILE
        try:
            # The whole file at once: tensor by tensor takes three times as long.
            content = path.read_bytes()
            tensors = load_tensors(content)
            config = json.loads(_metadata(content)["hmi"])
            if config["formatVersion"] != FORMAT_VERSION:
                raise InvalidInput(
                    "AdapterFormat",
                    f"{path.name} has format {config['formatVersion']}, this version reads "
                    f"{FORMAT_VERSION}; update HMI or train the adapter again.",
                )
            _check_types(path.name, tensors)
            return cls(
                task=TaskType(config["task"]),
                labels=tuple(config["labels"]),
                layers=_read_layers(tensors, config["bottlenecks"]),
                head=_read_head(tensors, config["pooling"], config["denseActivation"]),
                base_digest=config["baseDigest"],
                layers_digest=config["layersDigest"],
                tag_scheme=TagScheme(scheme) if (scheme := config.get("tagScheme")) else None,
            )
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise Damaged(
                "AdapterUnreadable",
                f"{path.name} cannot be read ({error}); fetch it again or train the adapter again.",
            ) from error


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file that has been loaded: its header is JSON after 8 bytes."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    return json.loads(content[_LENGTH_BYTES:end]).get("__metadata__", {})  # type: ignore[no-any-return]


def _check_types(file: str, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in STORED_TYPES:
            raise InvalidInput(
                "AdapterFormat",
                f"{name} in {file} is of type {tensor.dtype}, this version reads float32 and float16; "
                "update HMI or train the adapter again.",
            )


def _stored_layer(layer: LayerAdapter) -> LayerAdapter:
    return LayerAdapter(
        lora={name: LoraMatrix(*halved_factors(lora.a, lora.b)) for name, lora in layer.lora.items()},
        bias={name: _float32(bias) for name, bias in layer.bias.items()},
        norms={name: (_float32(weight), _float32(bias)) for name, (weight, bias) in layer.norms.items()},
        bottlenecks={
            place: replace(
                bottleneck,
                down=halved(bottleneck.down),
                down_bias=_float32(bottleneck.down_bias),
                up=halved(bottleneck.up),
                up_bias=_float32(bottleneck.up_bias),
            )
            for place, bottleneck in layer.bottlenecks.items()
        },
    )


def _float32(vector: Tensor) -> Tensor:
    return vector.detach().float().cpu().contiguous()


def _layer_tensors(prefix: str, layer: LayerAdapter) -> Iterator[tuple[str, Tensor]]:
    for matrix in MATRICES:
        if matrix in layer.lora:
            yield f"{prefix}.{matrix}.lora_a", layer.lora[matrix].a
            yield f"{prefix}.{matrix}.lora_b", layer.lora[matrix].b
        if matrix in layer.bias:
            yield f"{prefix}.{matrix}.bias", layer.bias[matrix]
    for norm in NORMS:
        if norm in layer.norms:
            weight, bias = layer.norms[norm]
            yield f"{prefix}.{norm}.weight", weight
            yield f"{prefix}.{norm}.bias", bias
    for place, bottleneck in layer.bottlenecks.items():
        for part in BOTTLENECK_TENSORS:
            yield f"{prefix}.{place}.{part}", getattr(bottleneck, part)


def _read_layers(tensors: Mapping[str, Tensor], bottlenecks: Mapping[str, Any]) -> dict[int, LayerAdapter]:
    indices = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("layers.")})
    return {index: _read_layer(tensors, f"layers.{index}", bottlenecks) for index in indices}


def _read_layer(tensors: Mapping[str, Tensor], prefix: str, bottlenecks: Mapping[str, Any]) -> LayerAdapter:
    return LayerAdapter(
        lora={
            matrix: LoraMatrix(tensors[f"{prefix}.{matrix}.lora_a"], tensors[f"{prefix}.{matrix}.lora_b"])
            for matrix in MATRICES
            if f"{prefix}.{matrix}.lora_a" in tensors
        },
        bias={
            matrix: tensors[f"{prefix}.{matrix}.bias"]
            for matrix in MATRICES
            if f"{prefix}.{matrix}.bias" in tensors
        },
        norms={
            norm: (tensors[f"{prefix}.{norm}.weight"], tensors[f"{prefix}.{norm}.bias"])
            for norm in NORMS
            if f"{prefix}.{norm}.weight" in tensors
        },
        bottlenecks={
            place: Bottleneck(
                **{part: tensors[f"{prefix}.{place}.{part}"] for part in BOTTLENECK_TENSORS},
                activation=bottlenecks[f"{prefix}.{place}"]["activation"],
                placement=bottlenecks[f"{prefix}.{place}"]["placement"],
            )
            for place in SUBLAYERS
            if f"{prefix}.{place}" in bottlenecks
        },
    )


def _read_head(tensors: Mapping[str, Tensor], pooling: Pooling, activation: Any) -> Head:
    dense = (
        Dense(tensors["head.dense.weight"], tensors["head.dense.bias"], activation)
        if activation is not None
        else None
    )
    return Head(pooling=pooling, weight=tensors["head.weight"], bias=tensors["head.bias"], dense=dense)


def export_norms(layer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return copies of the weight and bias of each norm of an encoder layer."""
    return {
        name: (
            layer.get_parameter(f"{name}.weight").detach().clone(),
            layer.get_parameter(f"{name}.bias").detach().clone(),
        )
        for name in NORMS
    }


V = TypeVar("V")


def pin_memory(value: V) -> V:
    """Return ``value``, dataclasses and mappings of tensors, with every tensor in page-locked memory.

    A GPU can copy from there asynchronously.
    """
    return _map_tensors(value, Tensor.pin_memory)


def _map_tensors(value: V, change: Callable[[Tensor], Tensor]) -> V:
    """Return ``value``, dataclasses, mappings and tuples of tensors, with ``change`` of every tensor."""
    changed: object = value
    if isinstance(value, Tensor):
        changed = change(value)
    elif isinstance(value, Mapping):
        changed = {key: _map_tensors(item, change) for key, item in value.items()}
    elif isinstance(value, tuple):
        changed = tuple(_map_tensors(item, change) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in fields(value)}
        changed = replace(value, **{name: _map_tensors(item, change) for name, item in items.items()})
    return changed  # type: ignore[return-value]  # the same shape as went in
