"""A runtime with int8 upper layers gives nearly the answers of the float32 reference."""

from typing import Any

import pytest
import torch

from hmi_api.internal.inference import InferRow
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
@pytest.mark.parametrize(("here", "taken"), [(True, "int8"), (False, "float32")])
def test_auto_chooses_int8_where_it_runs(
    here: bool,
    taken: str,
    models: Any,
    loader: AdapterLoader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not here:
        monkeypatch.setattr("hmi_runtime.adapters.quantization._exact_weight_levels", lambda: None)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    domain = models.domain("bikes/repair")
    loader.activate(loader.load(models.adapter("tenant/task", domain), domain))
    engine = loader.pipeline.engine(EngineKey(domain.version.base_digest, domain.version.split))
    assert engine is not None
    assert engine.executor.kernel.precision == taken
