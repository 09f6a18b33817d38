"""Device slots: pre-allocated tensors with the adapters that batches can use.

Every tensor has a leading layer dimension and a slot dimension, with one extra slot: the last one is *bare*
and has the base's own norms, for rows without an adapter. Matrices are stored rank-major, so that a prefix of
a slot is the operand for any smaller rank, and padding is zeros.

Row 0 of every ``lora_b`` is the difference between the adapter's bias and the base's, row 0 of every
``lora_a`` is zero, and ranks follow from row 1 on. An executor that writes ones into the column of row 0 of
``x @ a.T`` then adds LoRA and bias in one product.

Matrices have ``SlotLimits.dtype``; norms and heads, which are small, stay float32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.frozen import FUSED
from hmi_runtime.adapters.weights import AdapterWeights, BottleneckPlacement, Head, LayerAdapter
from hmi_runtime.models.architecture import MATRICES, NORMS, SUBLAYERS, EncoderConfig, Sublayer
from hmi_runtime.models.encoder import LayerStack

BARE = -1
"""The slot number of a row without an adapter."""

_SMALLEST_BUCKET = 8


@dataclass(frozen=True)
class SlotLimits:
    """The largest adapter that fits into a slot. Every slot takes this much memory, whatever is in it."""

    max_rank: int = 32
    max_bottleneck: int = 0
    max_labels: int = 32
    dense_heads: bool = True
    dtype: torch.dtype = torch.float32
    """Of matrices, as the executor's kernel needs it (``Kernel.slot_dtype``)."""


@dataclass(frozen=True)
class BottleneckTraits:
    """Shape of bottlenecks; rows with equal traits run as one product."""

    width: int
    activation: str
    placements: tuple[tuple[Sublayer, BottleneckPlacement], ...]


@dataclass(frozen=True)
class SlotTraits:
    """Shape of a slot's adapter, kept on the host for the batch plan."""

    rank: int = 0
    bottleneck: BottleneckTraits | None = None
    own_bias: bool = False
    own_norms: bool = False
    labels: int = 0
    pooling: str = "first"
    dense_activation: str | None = None


def bucket(size: int, limit: int) -> int:
    """Return the least power of two (at least 8) from ``size`` on, at most ``limit``; 0 for 0."""
    if size == 0:
        return 0
    return min(limit, max(_SMALLEST_BUCKET, 1 << (size - 1).bit_length()))


class SlotPool:
    """Slots for adapters of one base model at one split, on one device."""

    def __init__(
        self,
        upper: LayerStack,
        slots: int,
        limits: SlotLimits | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Allocate ``slots`` slots for adapters on ``upper``, whose biases and norms fill bare slots."""
        config, split = upper.config, upper.split
        self.config = config
        self.split = split
        self.device = torch.device(device)
        self.slots = slots
        self.limits = limits or SlotLimits()
        self.traits: list[SlotTraits] = [SlotTraits() for _ in range(slots + 1)]
        self._tensors = {
            name: torch.zeros(shape[0], slots + 1, *shape[1:], dtype=_dtype(name, self.limits), device=device)
            for name, shape in _slot_shapes(config, split, self.limits).items()
        }
        self._base_bias = {name: _stacked(upper, f"{name}.bias") for name in MATRICES}  # (layers, d_out)
        for name in NORMS:
            for row, kind in enumerate(("weight", "bias")):
                self._tensors[name][:, :, row] = _stacked(upper, f"{name}.{kind}")[:, None]  # (layers, 1, D)

    @staticmethod
    def slot_bytes(config: EncoderConfig, split: int, limits: SlotLimits) -> int:
        """Return the bytes one slot takes, for turning a byte budget into a number of slots."""
        return sum(
            torch.Size(shape).numel() * _dtype(name, limits).itemsize
            for name, shape in _slot_shapes(config, split, limits).items()
        )

    def tensor(self, name: str) -> Tensor:
        """Return one pool tensor, (layers, slots + 1, ...); see ``_slot_shapes`` for names."""
        return self._tensors[name]

    def index(self, slot: int) -> int:
        """Return a slot's index in the pool's tensors; that of ``BARE`` is the last."""
        if not BARE <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return self.slots if slot == BARE else slot

    def write(self, slot: int, weights: AdapterWeights) -> None:
        """Write an adapter into a slot, replacing its content.

        Raises ``InvalidInput`` as ``check_fits`` does, without changing the slot. The adapter must have
        passed ``checks.check_adapter``.
        """
        self.check_fits(weights)
        traits = _traits(weights, self.limits)
        self.clear(slot)
        self._write_layers(slot, weights.layers)
        self._write_head(slot, weights.head)
        self.traits[slot] = traits

    def check_fits(self, weights: AdapterWeights) -> None:
        """Raise ``InvalidInput`` unless a slot has room for an adapter that passed ``checks.check_adapter``.

        Reasons: AdapterTooLarge; AdapterShape when its bottlenecks are not of one kind. Writes nothing, so
        it can be called long before the adapter needs a slot.
        """
        _check_size(weights, self.limits)
        _bottleneck_traits(weights, self.limits)

    def clear(self, slot: int) -> None:
        """Make a slot bare again."""
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        self.traits[slot] = SlotTraits()
        for name, tensor in self._tensors.items():
            if name in NORMS:
                tensor[:, slot] = tensor[:, self.slots]  # of the bare slot
            else:
                tensor[:, slot].zero_()

    def _write_layers(self, slot: int, layers: Mapping[int, LayerAdapter]) -> None:
        """Copy all tensors of ``layers``, by the encoder's layer, into a slot, in one call of torch."""
        copies: list[tuple[Tensor, Tensor]] = []
        for index, changes in layers.items():
            copies += self._copies(index - self.split, slot, changes)
        if copies:
            targets, sources = map(list, zip(*copies, strict=True))
            torch._foreach_copy_(targets, sources)

    def _copies(self, layer: int, slot: int, changes: LayerAdapter) -> Iterator[tuple[Tensor, Tensor]]:
        """Return what is copied into a slot for one layer: pairs of the slot's part and its new value."""
        for name, lora in changes.lora.items():
            a, b = self._lora_slot(name, layer, slot)
            yield a[1 : lora.rank + 1], lora.a
            yield b[1 : lora.rank + 1], lora.b.t()
        for name, bias in changes.bias.items():
            difference = bias.to(self.device) - self._base_bias[name][layer]
            yield self._lora_slot(name, layer, slot)[1][0], difference
        for name, values in changes.norms.items():
            yield from zip(self._tensors[name][layer, slot], values, strict=True)
        for place, bottleneck in changes.bottlenecks.items():
            width = bottleneck.width
            for part, value in (("down", bottleneck.down), ("up", bottleneck.up.t())):
                yield self._tensors[f"{place}.{part}"][layer, slot, :width], value
            yield self._tensors[f"{place}.down_bias"][layer, slot, :width], bottleneck.down_bias
            yield self._tensors[f"{place}.up_bias"][layer, slot], bottleneck.up_bias

    def _lora_slot(self, name: str, layer: int, slot: int) -> tuple[Tensor, Tensor]:
        """Return the slot's views of one matrix: a (max_rank + 1, d_in) and b (max_rank + 1, d_out)."""
        b = self._tensors[f"{name}.lora_b"][layer, slot]
        if name in FUSED:
            return self._tensors["qkv.lora_a"][layer, slot, FUSED.index(name)], b
        return self._tensors[f"{name}.lora_a"][layer, slot], b

    def _write_head(self, slot: int, head: Head) -> None:
        labels, width = head.weight.shape[0], self.config.width
        # Pooled rows are [first, mean]; a dense layer's output takes the place of first.
        start = width if head.pooling == "mean" and head.dense is None else 0
        weight = self._tensors["head.weight"][0, slot]
        weight[:labels, start : start + head.weight.shape[1]] = head.weight
        self._tensors["head.bias"][0, slot, :labels] = head.bias
        if head.dense is not None:
            self._tensors["head.dense.weight"][0, slot] = head.dense.weight
            self._tensors["head.dense.bias"][0, slot] = head.dense.bias


_FLOAT32 = {*NORMS, "head.weight", "head.bias", "head.dense.bias"}
"""Tensors that are float32 in every slot."""


def _dtype(name: str, limits: SlotLimits) -> torch.dtype:
    return torch.float32 if name in _FLOAT32 else limits.dtype


def _stacked(upper: LayerStack, parameter: str) -> Tensor:
    """Return one parameter of every layer, (layers, ...)."""
    return torch.stack([layer.get_parameter(parameter).detach() for layer in upper.layers])


def _slot_shapes(config: EncoderConfig, split: int, limits: SlotLimits) -> dict[str, tuple[int, ...]]:
    """Return the pool's tensors: layers first, then one slot's shape."""
    depth, width, rank = config.layers - split, config.width, limits.max_rank
    shapes: dict[str, tuple[int, ...]] = {"qkv.lora_a": (depth, len(FUSED), rank + 1, width)}
    for name in MATRICES:
        out, inner = config.matrix_shape(name)
        if name not in FUSED:
            shapes[f"{name}.lora_a"] = (depth, rank + 1, inner)
        shapes[f"{name}.lora_b"] = (depth, rank + 1, out)
    for name in NORMS:
        shapes[name] = (depth, 2, width)
    if limits.max_bottleneck:
        for place in SUBLAYERS:
            shapes[f"{place}.down"] = (depth, limits.max_bottleneck, width)
            shapes[f"{place}.down_bias"] = (depth, limits.max_bottleneck)
            shapes[f"{place}.up"] = (depth, limits.max_bottleneck, width)
            shapes[f"{place}.up_bias"] = (depth, width)
    shapes["head.weight"] = (1, limits.max_labels, 2 * width)
    shapes["head.bias"] = (1, limits.max_labels)
    if limits.dense_heads:
        shapes["head.dense.weight"] = (1, width, width)
        shapes["head.dense.bias"] = (1, width)
    return shapes


def _check_size(weights: AdapterWeights, limits: SlotLimits) -> None:
    dense = weights.head.dense is not None
    for what, size, limit, setting in (
        ("rank", weights.rank, limits.max_rank, "HMI_MAX_RANK"),
        ("bottleneck width", weights.bottleneck_width, limits.max_bottleneck, "HMI_MAX_BOTTLENECK"),
        ("number of labels", len(weights.labels), limits.max_labels, "HMI_MAX_LABELS"),
        ("number of dense head layers", int(dense), int(limits.dense_heads), "HMI_DENSE_HEADS"),
    ):
        if size > limit:
            raise InvalidInput(
                "AdapterTooLarge",
                f"The adapter's {what} is {size}, this runtime's slots have room for {limit}; "
                f"train it smaller, or raise the runtime's {setting}.",
            )


def _traits(weights: AdapterWeights, limits: SlotLimits) -> SlotTraits:
    head = weights.head
    return SlotTraits(
        rank=bucket(weights.rank, limits.max_rank),
        bottleneck=_bottleneck_traits(weights, limits),
        own_bias=any(layer.bias for layer in weights.layers.values()),
        own_norms=any(layer.norms for layer in weights.layers.values()),
        labels=head.weight.shape[0],
        pooling=head.pooling,
        dense_activation=head.dense.activation if head.dense is not None else None,
    )


def _bottleneck_traits(weights: AdapterWeights, limits: SlotLimits) -> BottleneckTraits | None:
    found = [(place, b) for layer in weights.layers.values() for place, b in layer.bottlenecks.items()]
    if not found:
        return None
    activations = {b.activation for _, b in found}
    placements = {(place, b.placement) for place, b in found}
    if len(activations) > 1 or len({place for place, _ in placements}) < len(placements):
        raise InvalidInput(
            "AdapterShape",
            "The adapter's bottlenecks differ in activation or placement between layers; use one for all.",
        )
    return BottleneckTraits(
        width=bucket(weights.bottleneck_width, limits.max_bottleneck),
        activation=activations.pop(),
        placements=tuple(sorted(placements)),
    )
