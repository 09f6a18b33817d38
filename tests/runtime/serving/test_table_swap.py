"""A refreshed table is swapped in live: no request is lost, no adapter read again, no answer changed."""

import gc
import itertools
import threading
from concurrent.futures import Future

import pytest
import torch

from hmi_api.errors import HmiError
from hmi_api.internal.inference import InferRow, RowResult
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.tables.table import TABLE_FILE

TEXTS = ["the chain slips on a hill", "my room key lost", "the rooms . my keys slipsing on the chain", "lost"]
ROUNDING = 2e-3
"""How far float16 tables move a probability of these models."""


def submit(loader: AdapterLoader, keys: list[str]) -> "Future[list[RowResult]]":
    rows = [InferRow(adapter=key, text=text) for key, text in itertools.product(keys, TEXTS)]
    return loader.pipeline.submit(rows)


def probabilities(results: list[RowResult]) -> torch.Tensor:
    assert not [result.error for result in results if result.error]
    return torch.tensor([result.scores for result in results])


def test_answers_stay_while_tables_change_under_load(models, loader) -> None:  # type: ignore[no-untyped-def]
    versions = [models.domain("bikes/repair", seed=1)]
    adapters = {
        key: models.adapter(key, versions[0], seed=seed, labels=3)
        for seed, key in enumerate(["acme/topic", "inn/mood", "solo/plain"])
    }
    for adapter in adapters.values():
        loader.activate(loader.load(adapter, versions[0]))
    before = probabilities(submit(loader, list(adapters)).result(60))
    expected = torch.stack([models.probabilities(one, text) for one in adapters.values() for text in TEXTS])
    torch.testing.assert_close(before, expected, rtol=0, atol=ROUNDING)
    for count in range(1, len(TEXTS) + 1):
        versions.append(models.refreshed(versions[-1], TEXTS[:count]))
    answers: list[Future[list[RowResult]]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(submit(loader, list(adapters)))
            answers[-1].result(60)

    asking = threading.Thread(target=ask)
    asking.start()
    for domain in versions[1:]:
        swap(loader, adapters, domain)
        submit(loader, list(adapters)).result(60)
    stop.set()
    asking.join(60)
    assert answers
    for answer in answers:
        torch.testing.assert_close(probabilities(answer.result(0)), expected, rtol=0, atol=ROUNDING)


def swap(loader: AdapterLoader, adapters: dict[str, AdapterServing], domain: DomainServing) -> None:
    for key, adapter in adapters.items():
        moved = adapter.model_copy(update={"domain_version": domain.version.version})
        serving = loader.pipeline._adapters[key]
        loader.activate(loader.load(moved, domain, serving))


def test_no_adapter_is_read_again_and_the_old_table_is_freed(models, loader) -> None:  # type: ignore[no-untyped-def]
    old = models.domain("bikes/repair", seed=1)
    adapter = models.adapter("acme/topic", old)
    loader.activate(loader.load(adapter, old))
    submit(loader, ["acme/topic"]).result(60)
    (models.folder / "cache" / "adapter").rename(models.folder / "cache" / "moved-away")
    models.store.delete(adapter.artifact)
    new = models.refreshed(old, TEXTS)
    swap(loader, {"acme/topic": adapter}, new)
    assert not [one.error for one in submit(loader, ["acme/topic"]).result(60) if one.error]
    assert loader.mapped_bytes == new.version.layers.bytes + new.version.tables[0].bytes
    assert loader.loaded_versions == 1
    assert not loader._locks


def test_an_adapter_of_other_layers_is_read_and_checked(models, loader) -> None:  # type: ignore[no-untyped-def]
    old, other = models.domain("bikes/repair", seed=1), models.domain("bikes/repair", 2, seed=2)
    adapter = models.adapter("acme/topic", old)
    serving = loader.load(adapter, old)
    with pytest.raises(Exception, match="layers"):
        loader.load(adapter.model_copy(update={"domain_version": 2}), other, serving)


def test_a_damaged_table_leaves_the_old_one_in_place(models, loader) -> None:  # type: ignore[no-untyped-def]
    old = models.domain("bikes/repair", seed=1)
    adapter = models.adapter("acme/topic", old)
    loader.activate(loader.load(adapter, old))
    new = models.refreshed(old, TEXTS)
    stored = models.folder / "store" / new.version.tables[0].uri / TABLE_FILE
    stored.write_bytes(stored.read_bytes()[:-8])
    with pytest.raises(HmiError, match="ArtifactTruncated"):
        swap(loader, {"acme/topic": adapter}, new)
    assert not [one.error for one in submit(loader, ["acme/topic"]).result(60) if one.error]


def test_a_domain_that_is_created_again_under_its_name_serves_its_own_layers(models, loader) -> None:  # type: ignore[no-untyped-def]
    old = models.domain("bikes/repair", seed=1)
    loader.activate(loader.load(models.adapter("acme/topic", old), old))
    new = models.domain("bikes/repair", seed=2)  # version 1 again
    adapter = models.adapter("acme/topic", new, seed=2)
    loader.activate(loader.load(adapter, new))
    expected = torch.stack([models.probabilities(adapter, text) for text in TEXTS])
    answers = probabilities(submit(loader, ["acme/topic"]).result(60))
    torch.testing.assert_close(answers, expected, rtol=0, atol=ROUNDING)


def test_computed_windows_are_kept_within_the_budget_for_tables(models, loader) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    recent = loader.load(models.adapter("acme/topic", domain), domain).domain.lookup.recent
    memory = loader.table_memory
    assert 0 < recent.capacity_bytes <= memory.budget // 8
    before = memory.host_bytes
    held = recent.held_bytes
    del recent
    gc.collect()
    assert memory.host_bytes <= before - held
