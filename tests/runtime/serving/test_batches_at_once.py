"""Several batches compute at once: on all cores, with the same answers, whatever slots there are."""

import contextlib
import threading
from pathlib import Path

import pytest
import torch

from hmi_api.internal.inference import InferRow, RowResult
from hmi_api.internal.runtimes import AdapterServing
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.serving.cores import Cores, available_cores
from hmi_runtime.serving.engine import Engine
from hmi_runtime.serving.staging import StagedBatch

LIMIT = 60.0
TEXTS = [
    "the chain slips on a hill",
    "my room key lost",
    "a wheel",
    "lost",
    "the rooms . my keys on the chain",
]


@pytest.fixture
def settings(settings: RuntimeSettings) -> RuntimeSettings:
    """Slots for two batches of two rows, where three may compute at once."""
    return settings.model_copy(update={"device_slots": 4})


@pytest.fixture
def served(models, loader: AdapterLoader) -> list[AdapterServing]:  # type: ignore[no-untyped-def]
    """Adapters of twelve tenants on two domains."""
    domains = [models.domain("bikes/repair", seed=1), models.domain("hotels/desk", seed=2, table=False)]
    adapters = []
    for number in range(12):
        domain = domains[number % 2]
        adapter = models.adapter(f"tenant-{number}/task", domain, seed=number, bottleneck=number % 3 == 0)
        loader.activate(loader.load(adapter, domain))
        adapters.append(adapter)
    return adapters


def test_all_cores_compute_at_once_each_with_its_own_buffers(
    loader: AdapterLoader, served: list[AdapterServing], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)  # six batches of two rows: three at once, twice
    used: list[tuple[str, int]] = []
    run = UpperExecutor.run

    def wait_for_others(executor: UpperExecutor, *arguments: object) -> torch.Tensor:
        together.wait(LIMIT)
        used.append((threading.current_thread().name, id(executor)))
        return run(executor, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(UpperExecutor, "run", wait_for_others)
    rows = [InferRow(adapter=served[0].key, text=TEXTS[number // 4]) for number in range(12)]
    futures = [loader.pipeline.submit(rows[start : start + 4]) for start in (0, 4, 8)]
    assert all(result.error is None for future in futures for result in future.result(LIMIT))
    assert len(used) == 6
    assert len({thread for thread, _ in used}) == len({executor for _, executor in used}) == 3


def test_answers_equal_the_reference_in_order_while_batches_compete_for_slots(  # type: ignore[no-untyped-def]
    models, loader, served: list[AdapterServing]
) -> None:
    expected = {
        (adapter.key, text): models.probabilities(adapter, text) for adapter in served for text in TEXTS
    }
    requests = [
        [
            InferRow(adapter=served[(start + number) % 12].key, text=TEXTS[(start + number) % 5])
            for number in range(5)
        ]
        for start in range(60)
    ]
    futures = [loader.pipeline.submit(rows) for rows in requests]
    for rows, future in zip(requests, futures, strict=True):
        for row, result in zip(rows, future.result(LIMIT), strict=True):
            assert result.error is None, result.error
            right = expected[row.adapter, row.text or ""]
            torch.testing.assert_close(torch.tensor(result.scores), right, atol=2e-3, rtol=0)


def test_a_row_that_fails_leaves_the_batches_on_other_threads_alone(
    loader: AdapterLoader, served: list[AdapterServing], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Engine.compute
    faulty = served[3].key

    def fail(engine: Engine, batch: StagedBatch) -> list[RowResult]:
        if any(row.adapter.id.key == faulty for row in batch.rows):
            raise RuntimeError("this row cannot be computed")
        return compute(engine, batch)

    monkeypatch.setattr(Engine, "compute", fail)
    futures = [loader.pipeline.submit([InferRow(adapter=a.key, text=TEXTS[0])]) for a in served * 3]
    for adapter, future in zip(served * 3, futures, strict=True):
        (result,) = future.result(LIMIT)
        assert (result.error is not None) == (adapter.key == faulty)


def test_cores_are_shared_and_the_last_ones_are_left_to_batches_that_come() -> None:
    cores = Cores(8)
    granted = []
    with cores.share(10_000) as first:
        with cores.share(10_000) as second, cores.share(300) as short, cores.share(10) as tiny:
            granted = [first, second, short, tiny]
        with cores.share(10_000) as again:
            granted.append(again)
    assert granted == [4, 2, 1, 1, 2]


def test_a_batch_waits_for_a_core_and_uses_only_what_it_gets() -> None:
    cores = Cores(1)
    before = torch.get_num_threads()
    inside, leave = threading.Event(), threading.Event()
    order: list[str] = []

    def hold() -> None:
        with cores.share(10_000) as granted:
            assert torch.get_num_threads() == granted == 1
            order.append("first")
            inside.set()
            assert leave.wait(LIMIT)
            order.append("first left")

    def follow() -> None:
        with cores.share(1):
            order.append("second")

    threads = [threading.Thread(target=hold), threading.Thread(target=follow)]
    threads[0].start()
    assert inside.wait(LIMIT)
    threads[1].start()
    threads[1].join(0.02)
    leave.set()
    for thread in threads:
        thread.join(LIMIT)
    assert order == ["first", "first left", "second"]
    assert torch.get_num_threads() == before


def test_an_accelerator_computes_one_batch_at_a_time(settings: RuntimeSettings) -> None:
    cpu, gpu = settings.cores, settings.model_copy(update={"device": "cuda"}).cores
    assert (cpu.batches, cpu.threads) == (3, 3)
    assert (gpu.batches, gpu.threads) == (1, 2)


@pytest.mark.parametrize(
    ("content", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)]
)
def test_a_containers_cpu_limit_bounds_the_cores(tmp_path: Path, content: str, cores: int | None) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    assert available_cores(quota) == (cores or available_cores(tmp_path / "absent"))


def test_cores_that_a_batch_frees_go_to_as_many_batches_as_wait() -> None:
    waiting = threading.Semaphore(0)

    class Changed(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            waiting.release()
            return super().wait(timeout)

    cores = Cores(4)
    cores._changed = Changed()
    together = threading.Barrier(2)

    def compute() -> None:
        with cores.share(1):
            together.wait(5.0)

    threads = [threading.Thread(target=compute) for _ in range(2)]
    with contextlib.ExitStack() as long_text, contextlib.ExitStack() as others:
        assert long_text.enter_context(cores.share(10_000)) == 2
        assert [others.enter_context(cores.share(1)) for _ in range(2)] == [1, 1]
        for thread in threads:
            thread.start()
            assert waiting.acquire(timeout=LIMIT)
        long_text.close()
        for thread in threads:
            thread.join(LIMIT)
    assert not together.broken
