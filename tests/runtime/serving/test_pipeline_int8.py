"""A runtime with int8 upper layers gives nearly the answers of the float32 reference."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from hmi_api.internal.inference import InferRow
from hmi_runtime.adapters.executor import UpperExecutor, trial_executor
from hmi_runtime.adapters.kernels import FLOAT32, Kernel
from hmi_runtime.adapters.quantization import supports_int8
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.serving.engine import EngineKey


@pytest.fixture
def settings(settings: RuntimeSettings, request: pytest.FixtureRequest) -> RuntimeSettings:
    return settings.model_copy(update={"precision": getattr(request, "param", "int8")})


def test_int8_answers_are_close_to_the_reference(models, loader: AdapterLoader) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    adapters = [models.adapter(f"tenant-{number}/task", domain, seed=number) for number in range(3)]
    for adapter in adapters:
        loader.activate(loader.load(adapter, domain))
    rows = [InferRow(adapter=adapter.key, text="the chain slips on a hill") for adapter in adapters]
    for adapter, result in zip(adapters, loader.pipeline.submit(rows).result(timeout=60), strict=True):
        expected = models.probabilities(adapter, "the chain slips on a hill")
        torch.testing.assert_close(torch.tensor(result.scores), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("settings", ["auto"], indirect=True)
@pytest.mark.parametrize("fastest", ["float32", "int8"])
def test_auto_takes_the_fastest_and_says_so(fastest: str, models: Any, loader: AdapterLoader) -> None:
    def seconds(kernels: Sequence[Kernel], *_: object) -> list[float]:
        return [1.0 if one.precision == fastest else 2.0 for one in kernels]

    def in_float32(upper: UpperLayers, *_: object) -> UpperExecutor:
        return trial_executor(upper, FLOAT32)

    if not supports_int8(torch.device("cpu")):
        pytest.skip("this machine has one way to compute")
    kernels = [FLOAT32, Kernel("int8", "onednn")]
    loader.chooser = replace(
        loader.chooser, measure_seconds=seconds, kernels=lambda device: kernels, trial=in_float32
    )
    domain = models.domain("bikes/repair")
    loader.activate(loader.load(models.adapter("tenant/task", domain), domain))
    engine = loader.pipeline.engine(EngineKey(domain.version.base_digest, domain.version.split))
    assert engine is not None
    assert (engine.precision.choice.precision, engine.precision.source) == (fastest, "Measured")
    assert engine.executor.kernel.precision == fastest
    assert engine.precision.choice.sample == "windows of bikes/repair@1"
    assert not engine.precision.recorded  # there is no control plane
