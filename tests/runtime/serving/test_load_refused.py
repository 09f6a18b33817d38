"""Adapters that a runtime refuses to load, with the reasons."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hmi_api.artifacts import ArtifactKind
from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.weights import AdapterWeights, Head, LayerAdapter, LoraMatrix
from hmi_runtime.server.loader import AdapterLoader

LAYER = 3


def with_layer(weights: AdapterWeights, layer: LayerAdapter) -> AdapterWeights:
    return replace(weights, layers={**weights.layers, LAYER: layer})


def lora(weights: AdapterWeights, value: float) -> AdapterWeights:
    query = weights.layers[LAYER].lora["query"]
    b = query.b.clone()
    b[0, 0] = value
    return with_layer(weights, LayerAdapter(lora={"query": LoraMatrix(query.a, b)}))


def bias(weights: AdapterWeights, value: float) -> AdapterWeights:
    return with_layer(weights, LayerAdapter(bias={"key": torch.full((24,), value)}))


def norm(weights: AdapterWeights, value: float) -> AdapterWeights:
    norms = {"ffn_norm": (torch.ones(24), torch.full((24,), value))}
    return with_layer(weights, LayerAdapter(norms=norms))


def bottleneck(weights: AdapterWeights, value: float) -> AdapterWeights:
    made = weights.layers[LAYER].bottlenecks["ffn"]
    spoilt = replace(made, down_bias=torch.full_like(made.down_bias, value))
    return with_layer(weights, LayerAdapter(bottlenecks={"ffn": spoilt}))


def head(weights: AdapterWeights, value: float) -> AdapterWeights:
    own = weights.head
    return replace(weights, head=Head(own.pooling, own.weight, torch.full_like(own.bias, value)))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("spoil", [lora, bias, norm, bottleneck, head])
def test_an_adapter_that_is_not_finite_is_not_loaded(  # type: ignore[no-untyped-def]
    models, loader: AdapterLoader, spoil: Callable[[AdapterWeights, float], AdapterWeights], value: float
) -> None:
    domain = models.domain("bikes/repair")
    wanted = models.adapter("acme/topic", domain, bottleneck=spoil is bottleneck)
    weights = spoil(models.adapters["acme/topic@1"], value)
    folder = models.folder / "spoilt"
    weights.save(folder)
    artifact = models.store.publish(
        ArtifactKind.ADAPTER, folder, base_digest=weights.base_digest, layers_digest=weights.layers_digest
    )
    with pytest.raises(InvalidInput, match=r"AdapterNotFinite: \S+ has values"):
        loader.load(wanted.model_copy(update={"artifact": artifact}), domain)
