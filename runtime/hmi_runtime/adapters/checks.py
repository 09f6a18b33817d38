"""Checks that an adapter fits a base model, a split and a Domain's layers."""

from collections.abc import Iterator

import torch

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.weights import POOLINGS, AdapterWeights, LayerAdapter
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

    Reasons: AdapterForAnotherBase, AdapterForAnotherDomain (only if digests are given and the adapter names
    one), AdapterBelowSplit, AdapterShape, AdapterLabels, AdapterNotFinite.
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
    expected = dict(_expected_shapes(weights, config))
    for name, tensor in weights.named_tensors():
        if tensor.shape != expected[name]:
            raise InvalidInput(
                "AdapterShape",
                f"{name} has shape {list(tensor.shape)}, the base model needs {list(expected[name])}; "
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
            f"A head with pooling {weights.head.pooling!r} does not fit a {weights.task} task; "
            "token tasks need 'token', sequence tasks another pooling.",
        )


def _expected_shapes(weights: AdapterWeights, config: EncoderConfig) -> Iterator[tuple[str, Shape]]:
    """Yield the name of each tensor and the shape that it must have."""
    for index, layer in weights.layers.items():
        yield from _layer_shapes(f"layers.{index}", layer, config)
    labels, inner = weights.head.weight.shape[0], config.width
    if weights.head.dense is not None:
        # One shape for every dense layer: those of many tenants are multiplied as one batch.
        yield "head.dense.weight", (config.width, config.width)
        yield "head.dense.bias", (config.width,)
    elif weights.head.pooling == "first_and_mean":
        inner = 2 * config.width
    yield "head.weight", (labels, inner)
    yield "head.bias", (labels,)


def _layer_shapes(prefix: str, layer: LayerAdapter, config: EncoderConfig) -> Iterator[tuple[str, Shape]]:
    for matrix, lora in layer.lora.items():
        if matrix not in MATRICES:
            raise InvalidInput("AdapterShape", f"{prefix}.{matrix} is not a matrix of an encoder layer.")
        out, inner = config.matrix_shape(matrix)
        yield f"{prefix}.{matrix}.lora_a", (lora.rank, inner)
        yield f"{prefix}.{matrix}.lora_b", (out, lora.rank)
    for matrix in layer.bias:
        yield f"{prefix}.{matrix}.bias", config.matrix_shape(matrix)[:1]
    for norm in layer.norms:
        yield f"{prefix}.{norm}.weight", (config.width,)
        yield f"{prefix}.{norm}.bias", (config.width,)
    for place, bottleneck in layer.bottlenecks.items():
        yield f"{prefix}.{place}.down", (bottleneck.width, config.width)
        yield f"{prefix}.{place}.down_bias", (bottleneck.width,)
        yield f"{prefix}.{place}.up", (config.width, bottleneck.width)
        yield f"{prefix}.{place}.up_bias", (config.width,)
