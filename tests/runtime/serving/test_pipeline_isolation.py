"""A row that cannot be computed fails alone; the other rows of its batch are answered correctly."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hmi_api.internal.inference import InferRow, RowResult
from hmi_api.internal.runtimes import AdapterServing
from hmi_runtime.adapters.slot_pool import SlotPool
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.serving.engine import Engine
from hmi_runtime.serving.loaded import LoadedAdapter
from hmi_runtime.serving.staging import BatchRow, StagedBatch
from hmi_runtime.serving.worker import Quarantine

LIMIT = 60.0
TEXT = "the rooms . my keys slipsing on the chain"
FAULTY = "faulty/task"
TENANTS = [FAULTY, "acme/topic", "inn/mood", "inn-2/desk", "solo/plain", "zeta/guard"]


@pytest.fixture
def settings(settings: RuntimeSettings) -> RuntimeSettings:
    return settings.model_copy(update={"device_slots": 16})  # so that all tenants fit into one batch


@pytest.fixture
def served(models) -> dict[str, AdapterServing]:  # type: ignore[no-untyped-def]
    """Six tenants on two domains, one of them with bottlenecks."""
    domains = [models.domain("bikes/repair", seed=1), models.domain("hotels/desk", seed=2, table=False)]
    return {
        key: models.adapter(key, domains[seed % 2], seed=seed, labels=2 + seed, bottleneck=key == "inn/mood")
        for seed, key in enumerate(TENANTS)
    }


@pytest.fixture(autouse=True)
def loaded(models, loader: AdapterLoader, served: dict[str, AdapterServing]) -> list[LoadedAdapter]:  # type: ignore[no-untyped-def]
    """The adapters, loaded and active."""
    loaded = [loader.load(adapter, models.domains[adapter.domain]) for adapter in served.values()]
    for adapter in loaded:
        loader.activate(adapter)
    return loaded


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were tried."""
    tried: list[int] = []
    compute = Engine.compute

    def counted(engine: Engine, batch: StagedBatch) -> list[RowResult]:
        tried.append(len(batch.rows))
        return compute(engine, batch)

    monkeypatch.setattr(Engine, "compute", counted)
    return tried


def infer(loader: AdapterLoader) -> dict[str, RowResult]:
    """Send one text to every tenant's adapter, which makes one batch."""
    rows = [InferRow(adapter=key, text=TEXT) for key in TENANTS]
    return dict(zip(TENANTS, loader.pipeline.submit(rows).result(LIMIT), strict=True))


def assert_right(models, adapter: AdapterServing, result: RowResult) -> None:  # type: ignore[no-untyped-def]
    assert result.error is None, result.error
    expected = models.probabilities(adapter, TEXT)
    torch.testing.assert_close(torch.tensor(result.scores), expected, atol=2e-3, rtol=0)


def assert_only_faulty_fails(models, served, results: dict[str, RowResult], status: int, reason: str) -> None:  # type: ignore[no-untyped-def]
    error = results.pop(FAULTY).error
    assert error is not None
    assert (error.status, error.reason) == (status, reason)
    for key, result in results.items():
        assert_right(models, served[key], result)


def slot_of(loader: AdapterLoader, key: str) -> tuple[SlotPool, int]:
    """Return the pool and the slot of an adapter that was just used."""
    (engine,) = loader.pipeline.engines()
    adapter = next(adapter for adapter in loader.cache.loaded() if adapter.key == key)
    with engine.slots.acquired([adapter]) as acquired:
        return engine.executor.pool, acquired.slots[adapter]


def make_it_raise(pool: SlotPool, slot: int) -> None:
    pool.traits[slot] = replace(pool.traits[slot], dense_activation="unknown")


def make_lora_infinite(pool: SlotPool, slot: int) -> None:
    pool.tensor("query.lora_b")[:, slot] = float("inf")


def make_head_not_a_number(pool: SlotPool, slot: int) -> None:
    pool.tensor("head.weight")[:, slot] = float("nan")


def test_a_row_that_raises_fails_alone_and_is_named_in_the_log(  # type: ignore[no-untyped-def]
    models, loader, served, batches, caplog: pytest.LogCaptureFixture
) -> None:
    infer(loader)
    make_it_raise(*slot_of(loader, FAULTY))
    batches.clear()
    assert_only_faulty_fails(models, served, infer(loader), 500, "InferenceFailed")
    assert batches == [6, 1, 1, 1, 1, 1, 1]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert FAULTY in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("poison", [make_lora_infinite, make_head_not_a_number])
def test_values_that_are_not_finite_affect_only_their_row(  # type: ignore[no-untyped-def]
    models, loader, served, batches, poison: Callable[[SlotPool, int], None]
) -> None:
    infer(loader)
    poison(*slot_of(loader, FAULTY))
    batches.clear()
    assert_only_faulty_fails(models, served, infer(loader), 500, "AdapterOutputInvalid")
    assert batches == [6]


def test_a_batch_too_large_for_memory_is_answered_row_by_row(  # type: ignore[no-untyped-def]
    models, loader, served, metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Engine.compute

    def out_of_memory(engine: Engine, batch: StagedBatch) -> list[RowResult]:
        if len(batch.rows) > 1:
            raise torch.OutOfMemoryError("no room for so many rows")
        return compute(engine, batch)

    monkeypatch.setattr(Engine, "compute", out_of_memory)
    for key, result in infer(loader).items():
        assert_right(models, served[key], result)
        assert result.table_lookups == result.prompt_tokens
    assert metrics.registry.get_sample_value("hmi_batch_size_count") == len(TENANTS)
    assert metrics.registry.get_sample_value("hmi_padding_tokens_total") == 0


def test_a_row_that_cannot_be_staged_fails_alone(  # type: ignore[no-untyped-def]
    models, loader, served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Engine.stage

    def refuse_faulty(engine: Engine, rows: list[BatchRow]) -> StagedBatch:
        if any(row.adapter.id.key == FAULTY for row in rows):
            raise RuntimeError("this row has no place in a batch")
        return stage(engine, rows)

    monkeypatch.setattr(Engine, "stage", refuse_faulty)
    assert_only_faulty_fails(models, served, infer(loader), 500, "InferenceFailed")


def test_an_adapter_that_always_fails_is_refused_and_no_longer_breaks_batches(  # type: ignore[no-untyped-def]
    models, loader, served, batches, metrics
) -> None:
    infer(loader)
    make_it_raise(*slot_of(loader, FAULTY))
    for _ in range(3):
        infer(loader)
    batches.clear()
    assert_only_faulty_fails(models, served, infer(loader), 503, "AdapterQuarantined")
    assert batches == [5]
    assert metrics.registry.get_sample_value("hmi_adapter_quarantines_total") == 1


def test_a_quarantine_ends_with_a_success_and_is_renewed_by_a_failure() -> None:
    now = 0.0
    quarantine = Quarantine(2, 30.0, clock=lambda: now)
    adapter, other = AdapterId("acme/a", 1), AdapterId("acme/a", 2)
    assert not quarantine.record_failure(adapter)
    quarantine.record_success(adapter)
    assert not quarantine.record_failure(adapter)  # not two in a row
    assert quarantine.record_failure(adapter)
    assert quarantine.error_for(adapter) is not None
    assert quarantine.error_for(other) is None
    now = 31.0
    assert quarantine.error_for(adapter) is None
    assert quarantine.record_failure(adapter)
    assert quarantine.error_for(adapter) is not None
    now = 62.0
    quarantine.record_success(adapter)
    assert not quarantine.record_failure(adapter)


def test_a_failed_row_releases_everything(loader, loaded) -> None:  # type: ignore[no-untyped-def]
    infer(loader)
    make_it_raise(*slot_of(loader, FAULTY))
    infer(loader)
    assert loader.pipeline.unanswered == 0
    assert loader.cache.host_used > 0
    for adapter in loaded:
        loader.pipeline.deactivate(adapter.id.key)
        loader.unload(adapter)
    assert loader.cache.host_used == 0
