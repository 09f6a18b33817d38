"""Limits of a pipeline: full queues, late and cancelled requests, draining."""

import threading

import pytest

from hmi_api.internal.inference import InferRow
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.serving import batching
from hmi_runtime.serving.batching import BatchLimits
from hmi_runtime.serving.engine import Engine
from hmi_runtime.serving.loaded import LoadedAdapter
from hmi_runtime.serving.pipeline import Pipeline, PipelineLimits
from hmi_runtime.serving.staging import StagedBatch

LIMIT = 60.0
ROW = InferRow(adapter="acme/topic", text="a wheel")


class Gate:
    """Delays an engine's batches until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.rows = 0
        compute = Engine.compute

        def gated(engine: Engine, batch: StagedBatch):  # type: ignore[no-untyped-def]
            self.rows += len(batch.rows)
            self.reached.set()
            assert self.open.wait(LIMIT)
            return compute(engine, batch)

        monkeypatch.setattr(Engine, "compute", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def settings(settings: RuntimeSettings) -> RuntimeSettings:
    """One batch at a time, so that rows wait while the gate is closed."""
    return settings.model_copy(update={"threads": 1, "max_queue": 10, "request_timeout_seconds": 10.0})


@pytest.fixture
def adapter(models, loader: AdapterLoader) -> LoadedAdapter:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    loaded = loader.load(models.adapter("acme/topic", domain), domain)
    loader.activate(loaded)
    return loaded


@pytest.fixture
def pipeline(adapter: LoadedAdapter, gate: Gate, loader: AdapterLoader) -> Pipeline:
    return loader.pipeline


def test_a_full_queue_refuses_rows_with_a_reason(pipeline: Pipeline, gate: Gate) -> None:
    waiting = [pipeline.submit([ROW]) for _ in range(10)]
    (refused,) = pipeline.submit([ROW]).result(LIMIT)
    assert refused.error is not None
    assert (refused.error.status, refused.error.reason) == (503, "Overloaded")
    gate.open.set()
    assert all(future.result(LIMIT)[0].error is None for future in waiting)
    assert pipeline.submit([ROW]).result(LIMIT)[0].error is None


def test_a_cancelled_request_is_not_computed(pipeline: Pipeline, gate: Gate) -> None:
    first = pipeline.submit([ROW])
    assert gate.reached.wait(LIMIT)
    cancelled = [pipeline.submit([ROW]) for _ in range(3)]
    assert all(future.cancel() for future in cancelled)
    gate.open.set()
    assert first.result(LIMIT)[0].error is None
    assert pipeline.drain(LIMIT)
    assert gate.rows <= 1 + 1  # one more may have been staged before it was cancelled


def test_a_late_request_gets_an_error_without_being_computed(
    pipeline: Pipeline, adapter: LoadedAdapter, loader: AdapterLoader, gate: Gate, metrics: RuntimeMetrics
) -> None:
    late = Pipeline(loader.cache, PipelineLimits(request_timeout=-1.0), events=metrics)
    (engine,) = pipeline.engines()
    late.add_engine(engine)
    late.activate(adapter)
    (result,) = late.submit([ROW]).result(LIMIT)
    assert result.error is not None
    assert (result.error.status, result.error.reason) == (504, "DeadlineExceeded")
    assert gate.rows == 0
    assert late.drain(LIMIT)


def test_draining_answers_accepted_rows_and_refuses_new_ones(pipeline: Pipeline, gate: Gate) -> None:
    under_way = [pipeline.submit([ROW, ROW]) for _ in range(3)]
    assert gate.reached.wait(LIMIT)
    drained: list[bool] = []
    draining = threading.Thread(target=lambda: drained.append(pipeline.drain(LIMIT)))
    pipeline.refuse_new()
    draining.start()
    (refused,) = pipeline.submit([ROW]).result(LIMIT)
    assert refused.error is not None
    assert (refused.error.status, refused.error.reason) == (503, "Draining")
    gate.open.set()
    draining.join(LIMIT)
    assert drained == [True]
    assert all(row.error is None for future in under_way for row in future.result(LIMIT))


def test_rows_that_draining_does_not_wait_for_get_an_error(pipeline: Pipeline, gate: Gate) -> None:
    computing = pipeline.submit([ROW, ROW])
    assert gate.reached.wait(LIMIT)
    queued, cancelled = pipeline.submit([ROW]), pipeline.submit([ROW])
    assert cancelled.cancel()
    assert not pipeline.drain(0.0)
    for result in [*computing.result(LIMIT), *queued.result(LIMIT)]:
        assert result.error is not None
        assert (result.error.status, result.error.reason) == (503, "Draining")
    assert pipeline.unanswered == 0
    gate.open.set()  # results that come later are dropped
    assert pipeline.drain(LIMIT)


def test_a_request_that_comes_when_all_has_stopped_gets_an_error(pipeline: Pipeline, gate: Gate) -> None:
    gate.open.set()
    pipeline._preparers.stop()  # as by ``drain``, after the request was accepted
    (result,) = pipeline.submit([ROW]).result(LIMIT)
    assert result.error is not None
    assert (result.error.status, result.error.reason) == (503, "Draining")


def test_answered_requests_are_not_kept(pipeline: Pipeline, gate: Gate) -> None:
    gate.open.set()
    pipeline.submit([ROW, InferRow(adapter="acme/unknown", text="a")]).result(LIMIT)
    pipeline.refuse_new()
    pipeline.submit([ROW]).result(LIMIT)
    assert not pipeline._requests


def test_after_a_failed_batch_the_next_one_is_computed(
    pipeline: Pipeline, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.set()
    with monkeypatch.context() as broken:
        broken.setattr(Engine, "compute", lambda *_: 1 / 0)
        (result,) = pipeline.submit([ROW]).result(LIMIT)
    assert result.error is not None
    assert (result.error.status, result.error.reason) == (500, "InferenceFailed")
    assert pipeline.submit([ROW]).result(LIMIT)[0].error is None


def test_a_request_that_cannot_be_prepared_gets_an_error(
    pipeline: Pipeline, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.set()
    with monkeypatch.context() as broken:
        broken.setattr(Pipeline, "_find_adapters", lambda *_: 1 / 0)
        (result,) = pipeline.submit([ROW]).result(LIMIT)
    assert result.error is not None
    assert (result.error.status, result.error.reason) == (500, "InferenceFailed")
    assert pipeline.submit([ROW]).result(LIMIT)[0].error is None
    assert pipeline.unanswered == 0


def test_an_empty_request_has_an_empty_answer(pipeline: Pipeline, gate: Gate) -> None:
    assert pipeline.submit([]).result(LIMIT) == []
    gate.open.set()


def test_many_rows_with_one_text_keep_the_limit_of_tokens(
    pipeline: Pipeline,
    adapter: LoadedAdapter,
    loader: AdapterLoader,
    metrics: RuntimeMetrics,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate.open.set()
    tokens: list[int] = []
    monkeypatch.setattr(metrics, "staged", lambda batch: tokens.append(batch.tokens))
    limits = PipelineLimits(batch=BatchLimits(max_rows=8, max_tokens=8))
    small = Pipeline(loader.cache, limits, events=metrics)
    (engine,) = pipeline.engines()
    small.add_engine(engine)
    small.activate(adapter)
    results = small.submit([ROW] * 9).result(LIMIT)
    assert not [result.error for result in results if result.error]
    assert max(tokens) == 8
    assert small.drain(LIMIT)


@pytest.mark.parametrize("computes_padding", [True, False])
def test_texts_of_any_length_share_a_batch_where_padding_takes_no_time(
    computes_padding: bool,
    pipeline: Pipeline,
    adapter: LoadedAdapter,
    loader: AdapterLoader,
    metrics: RuntimeMetrics,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate.open.set()
    batches: list[tuple[int, int]] = []
    monkeypatch.setattr(metrics, "staged", lambda batch: batches.append((len(batch.rows), batch.tokens)))
    monkeypatch.setattr(Engine, "computes_padding", computes_padding)
    monkeypatch.setattr(batching, "_SMALL_BATCH_TOKENS", 0)
    wide = Pipeline(loader.cache, PipelineLimits(max_wait=5.0, batch=BatchLimits(max_rows=4)), events=metrics)
    (engine,) = pipeline.engines()
    wide.add_engine(engine)
    wide.activate(adapter)
    texts = ["chain"] * 2 + ["the chain slips on a hill " * 4] * 2
    results = wide.submit([InferRow(adapter="acme/topic", text=text) for text in texts]).result(LIMIT)
    assert not [result.error for result in results if result.error]
    if computes_padding:
        assert [rows for rows, _ in batches] == [2, 2]
    else:
        assert batches == [(4, sum(result.prompt_tokens for result in results))]
    assert wide.drain(LIMIT)


def test_an_event_that_cannot_be_counted_costs_no_answer(
    pipeline: Pipeline, metrics: RuntimeMetrics, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room to count")

    gate.open.set()
    for event in ("staged", "computed"):
        monkeypatch.setattr(metrics, event, fail)
    for _ in range(3):
        (result,) = pipeline.submit([ROW]).result(LIMIT)
        assert result.error is None
