"""Checks that an adapter fits a base model, a split and a Domain's layers."""

from collections.abc import Iterator

import torch

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.weights import POOLINGS, AdapterWeights, Head, LayerAdapter
from hmi_runtime.models.architecture import MATRICES, EncoderConfig

Shape = tuple[int, ...]

BELOW_SPLIT_ADVICE = "train here on the task's data, or choose a Domain with a smaller split"


def check_adapter(
    weights: AdapterWeights,
    config: EncoderConfig,
    split: int,
    *,
    base_digest: str | None = None,
    layers_digest: str | None = None,
) -> None:
    """Raise ``InvalidInput`` unless ``weights`` can be served by layers ``split``.. of ``config``.

    Reasons: AdapterForAnotherBase, AdapterForAnotherDomain (only where digests are given and the adapter
    names one), AdapterBelowSplit, AdapterShape, AdapterLabels, AdapterNotFinite.
    """
    if base_digest is not None and weights.base_digest != base_digest:
        raise InvalidInput(
            "AdapterForAnotherBase",
            f"The adapter was made for base model {weights.base_digest}, not {base_digest}; "
            "use a Domain on its base model, or train it again here.",
        )
    trained_on = weights.layers_digest
    if layers_digest is not None and trained_on is not None and trained_on != layers_digest:
        raise InvalidInput(
            "AdapterForAnotherDomain",
            f"The adapter was trained on layers {trained_on}, not {layers_digest}; train it again here.",
        )
    _check_depth(weights, config, split)
    for name, found, expected in _shapes(weights, config):
        if found != expected:
            raise InvalidInput(
                "AdapterShape",
                f"{name} has shape {list(found)}, the base model needs {list(expected)}; "
                "use an adapter made for this base model.",
            )
    _check_labels(weights)
    for name, tensor in weights.named_tensors():
        if not torch.isfinite(tensor).all():
            raise InvalidInput(
                "AdapterNotFinite",
                f"{name} has values that are not finite; train again with a lower learning rate.",
            )


def _check_depth(weights: AdapterWeights, config: EncoderConfig, split: int) -> None:
    below = sorted(index for index in weights.layers if index < split)
    if below:
        raise InvalidInput(
            "AdapterBelowSplit",
            f"The adapter changes layer {below[0]}, below the Domain's split at {split}; "
            f"{BELOW_SPLIT_ADVICE}.",
        )
    above = sorted(index for index in weights.layers if index >= config.layers)
    if above:
        raise InvalidInput(
            "AdapterShape",
            f"The adapter changes layer {above[0]}, but the base model has {config.layers} layers (from 0).",
        )


def _check_labels(weights: AdapterWeights) -> None:
    if len(weights.labels) != weights.head.weight.shape[0] or len(set(weights.labels)) != len(weights.labels):
        raise InvalidInput(
            "AdapterLabels",
            f"The adapter names {len(set(weights.labels))} different labels, its head gives "
            f"{weights.head.weight.shape[0]} scores; name each score once.",
        )
    per_token = weights.task is TaskType.TOKEN_CLASSIFICATION
    if per_token != (weights.head.pooling == "token") or weights.head.pooling not in POOLINGS:
        raise InvalidInput(
            "AdapterShape",
            f"A head that reads {weights.head.pooling!r} cannot answer a {weights.task} task; "
            "token tasks read every token, sequence tasks pool.",
        )


def _shapes(weights: AdapterWeights, config: EncoderConfig) -> Iterator[tuple[str, Shape, Shape]]:
    """Yield each tensor's name, the shape it has and the shape it must have."""
    for index, layer in weights.layers.items():
        yield from _layer_shapes(f"layers.{index}", layer, config)
    yield from _head_shapes(weights.head, config.width)


def _layer_shapes(
    prefix: str, layer: LayerAdapter, config: EncoderConfig
) -> Iterator[tuple[str, Shape, Shape]]:
    for matrix, lora in layer.lora.items():
        if matrix not in MATRICES:
            raise InvalidInput("AdapterShape", f"{prefix}.{matrix} is not a matrix of an encoder layer.")
        out, inner = config.matrix_shape(matrix)
        yield f"{prefix}.{matrix}.lora_a", tuple(lora.a.shape), (lora.rank, inner)
        yield f"{prefix}.{matrix}.lora_b", tuple(lora.b.shape), (out, lora.rank)
    for matrix, bias in layer.bias.items():
        yield f"{prefix}.{matrix}.bias", tuple(bias.shape), config.matrix_shape(matrix)[:1]
    for norm, (weight, bias) in layer.norms.items():
        yield f"{prefix}.{norm}.weight", tuple(weight.shape), (config.width,)
        yield f"{prefix}.{norm}.bias", tuple(bias.shape), (config.width,)
    for place, bottleneck in layer.bottlenecks.items():
        width = bottleneck.width
        yield f"{prefix}.{place}.down", tuple(bottleneck.down.shape), (width, config.width)
        yield f"{prefix}.{place}.down_bias", tuple(bottleneck.down_bias.shape), (width,)
        yield f"{prefix}.{place}.up", tuple(bottleneck.up.shape), (config.width, width)
        yield f"{prefix}.{place}.up_bias", tuple(bottleneck.up_bias.shape), (config.width,)


def _head_shapes(head: Head, width: int) -> Iterator[tuple[str, Shape, Shape]]:
    labels = head.weight.shape[0]
    inner = 2 * width if head.pooling == "first_and_mean" else width
    if head.dense is not None:
        # One shape for every dense layer: those of many tenants are multiplied as one batch.
        yield "head.dense.weight", tuple(head.dense.weight.shape), (width, width)
        yield "head.dense.bias", tuple(head.dense.bias.shape), (width,)
        inner = width
    yield "head.weight", tuple(head.weight.shape), (labels, inner)
    yield "head.bias", tuple(head.bias.shape), (labels,)
