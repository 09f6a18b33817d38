"""A refresh run: the next table of the same layers, from what traffic looked up."""

from typing import Any

import numpy as np
import pytest
import torch
from fake_window_counts import window_array
from support_runs import Runs, failed, succeeded

from hmi_api.artifacts import ArtifactKind
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.refreshes import RefreshCause, RefreshSpec
from hmi_api.internal.runs import DomainRunSpec
from hmi_api.internal.window_counts import DomainLookups, WindowCounts
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import pack, trigrams
from hmi_runtime.tables.table import TABLE_FILE, PlotTable
from hmi_runtime.training.refresh_run import TRAFFIC_FILE

TEXT = "the blue pump creaks on my hill road again today"


class Counts:
    """What traffic looked up, and how often a run read it."""

    def __init__(self, layers_digest: str, windows: dict[int, int], lookups: int = 100, **more: Any) -> None:
        self.reads: list[int] = []
        statistics = DomainLookups.of(lookups, lookups // 2)
        limits = {"least_tenants": 3, "days": 30, "statistics": statistics}
        fields = window_array(windows).model_dump()
        self._counts = WindowCounts(**fields, **limits, **more, layers_digest=layers_digest)

    def __call__(self, most: int) -> WindowCounts:
        self.reads.append(most)
        return self._counts


def windows_of(base: BaseModel, text: str) -> list[int]:
    ids = torch.tensor([base.tokenizer.encode([text], 64)[0].ids])
    found = trigrams(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    keys: list[int] = pack(found, base.config.vocab_size).tolist()
    return keys


def refresh_spec(runs: Runs, current: DomainVersionView, **more: Any) -> DomainRunSpec:
    refresh = RefreshSpec(current=current, cause=RefreshCause.SCHEDULE)
    return runs.domain_spec(**more).model_copy(update={"refresh": refresh})


@pytest.fixture
def current(runs: Runs) -> DomainVersionView:
    return runs.version()


def test_frequent_windows_come_in_and_the_layers_stay(
    runs: Runs, current: DomainVersionView, base: BaseModel
) -> None:
    keys = windows_of(base, TEXT)
    counts = Counts(current.layers.digest, dict.fromkeys(keys, 5))
    runs.corpus.unlink()  # a refresh reads no corpus
    result = succeeded(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    (table,) = result.artifacts
    assert (table.kind, result.layers_digest) == (ArtifactKind.TABLE, current.layers.digest)
    assert runs.store.manifest(table).layers_digest == current.layers.digest
    loaded = PlotTable.load(runs.store.fetch(table, runs.folder / "cache"))
    assert bool((loaded.find(torch.tensor(keys)) >= 0).all())
    before = PlotTable.load(runs.store.fetch(current.tables[0], runs.folder / "cache"))
    change = result.refresh
    assert change is not None
    assert loaded.entries == result.entries == before.entries + change.windows_in - change.windows_out
    assert change.windows_in > 0
    assert result.coverage == 1.0
    rows = before.find(loaded.keys)
    kept = rows >= 0
    assert torch.equal(loaded.values[kept], before.values[rows[kept]])
    assert counts.reads == [200_000]


def test_the_same_inputs_give_the_same_file(runs: Runs, current: DomainVersionView, base: BaseModel) -> None:
    counts = Counts(current.layers.digest, dict.fromkeys(windows_of(base, TEXT), 5))
    made = [
        succeeded(runs.do(refresh_spec(runs, current), name, window_counts=counts)).artifacts
        for name in ("one", "other")
    ]
    assert made[0] == made[1]
    files = [(runs.folder / name / "table" / TABLE_FILE).read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]


def test_traffic_is_read_once_by_a_run_that_is_started_again(
    runs: Runs, current: DomainVersionView, base: BaseModel
) -> None:
    counts = Counts(current.layers.digest, dict.fromkeys(windows_of(base, TEXT), 5))
    first = succeeded(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    for name in ("result.json", "table.json"):
        (runs.folder / "refresh" / name).unlink()
    changed = Counts(current.layers.digest, {})
    again = succeeded(runs.do(refresh_spec(runs, current), "refresh", window_counts=changed))
    assert again.artifacts == first.artifacts
    assert not changed.reads


def test_traffic_that_an_earlier_version_saved_is_read(
    runs: Runs, current: DomainVersionView, base: BaseModel
) -> None:
    counts = Counts(current.layers.digest, dict.fromkeys(windows_of(base, TEXT), 5))
    first = succeeded(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    for name in ("result.json", "table.json"):
        (runs.folder / "refresh" / name).unlink()
    file = next((runs.folder / "refresh").rglob(TRAFFIC_FILE))
    with np.load(file) as saved:
        earlier = {name: saved[name] for name in ("keys", "counts")}
    np.savez(file, **earlier)
    again = succeeded(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    assert again.artifacts == first.artifacts


def test_without_traffic_nothing_is_published(runs: Runs, current: DomainVersionView) -> None:
    counts = Counts(current.layers.digest, {}, lookups=0)
    result = succeeded(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    assert result.artifacts == []
    assert result.refresh is not None
    assert (result.refresh.windows_in, result.refresh.windows_out) == (0, 0)


def test_the_budget_holds(runs: Runs, current: DomainVersionView, base: BaseModel) -> None:
    keys = windows_of(base, TEXT)
    counts = Counts(current.layers.digest, dict.fromkeys(keys, 500))
    plot = {"maxEntries": 12, "minFrequency": 1}
    result = succeeded(runs.do(refresh_spec(runs, current, plot=plot), "refresh", window_counts=counts))
    assert result.entries == 12
    table = PlotTable.load(runs.store.fetch(result.artifacts[0], runs.folder / "cache"))
    assert set(keys) <= set(table.keys.tolist())


def test_a_childs_refresh_uses_its_parents_present_tables(
    runs: Runs, current: DomainVersionView, base: BaseModel, write_lines: Any
) -> None:
    runs.corpus = write_lines("more.jsonl", [{"text": "the red tyre squeals"}])
    child = runs.version("child", parent=current, training={"steps": 0})
    keys = windows_of(base, TEXT)
    counts = Counts(current.layers.digest, dict.fromkeys(keys, 5))
    grown = succeeded(runs.do(refresh_spec(runs, current), "grown", window_counts=counts))
    parent = current.model_copy(update={"version": 2, "tables": grown.artifacts})
    spec = refresh_spec(runs, child, parent=parent, training={"steps": 0})
    result = succeeded(runs.do(spec, "refresh", window_counts=counts))
    assert result.coverage == 1.0
    assert result.refresh is not None
    assert result.refresh.windows_in == 0  # the parent has all of them
    assert len(result.artifacts) == 1  # and the child's next version reads the parent's present table
    unchanged = refresh_spec(runs, child, parent=current, training={"steps": 0})
    nothing = Counts(current.layers.digest, {}, lookups=0)
    assert succeeded(runs.do(unchanged, "unchanged", window_counts=nothing)).artifacts == []


def test_windows_that_belong_to_a_child_leave_its_parent(
    runs: Runs, current: DomainVersionView, base: BaseModel
) -> None:
    before = PlotTable.load(runs.store.fetch(current.tables[0], runs.folder / "cache"))
    theirs = before.keys[:2]
    counts = Counts(current.layers.digest, {}, belongs_to_child=theirs.numpy().astype("<i8").tobytes())
    result = succeeded(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    assert result.refresh is not None
    assert (result.refresh.windows_in, result.refresh.windows_out) == (0, 2)
    table = PlotTable.load(runs.store.fetch(result.artifacts[0], runs.folder / "cache"))
    assert bool((table.find(theirs) < 0).all())


@pytest.mark.parametrize("reason", ["TrafficUnknown", "RefreshOutdated"])
def test_a_refresh_that_cannot_be_made_says_why(reason: str, runs: Runs, current: DomainVersionView) -> None:
    counts = None if reason == "TrafficUnknown" else Counts("sha256:other", {})
    ended = failed(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    assert (ended.reason, ended.retryable) == (reason, False)


def test_damaged_layers_are_not_used(runs: Runs, current: DomainVersionView) -> None:
    file = next((runs.folder / "artifacts" / current.layers.uri).glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    counts = Counts(current.layers.digest, {})
    ended = failed(runs.do(refresh_spec(runs, current), "refresh", window_counts=counts))
    assert ended.reason == "DigestMismatch"
