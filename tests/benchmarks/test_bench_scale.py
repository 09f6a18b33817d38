"""The scale benchmark: tiers keep to their budgets, cold requests are counted, the report is complete."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from hmi_api.artifacts import ArtifactKind
from hmi_bench.scale.benchmark import ScalePlan, run_scale
from hmi_bench.scale.catalog import Catalog
from hmi_bench.scale.memory import MemoryFigures
from hmi_bench.scale.population import require_disk
from hmi_bench.scale.traffic import Source, WatchedStore, zipf_requests
from hmi_bench.texts import draw_lengths, text_lengths
from hmi_bench.timing import percentile, seconds_in_turns

TINY = ScalePlan(
    base="tiny",
    counts=(1, 24),
    catalog_counts=(2, 5),
    rank=2,
    slots=8,
    host=10,
    disk=16,
    clients=4,
    requests=80,
    registered=200,
    texts=4,
    other_entries=50,
)


def test_tiers_keep_to_their_budgets_and_cold_requests_are_counted(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    tables = run_scale(tmp_path, TINY)
    written = json.loads((tmp_path / "scale.json").read_text())
    one, many = written["stages"]
    assert one["warm"]["requests"] == 80
    assert one["store"]["p99"] is None
    assert many["disk"]["requests"] + many["store"]["requests"] > 0
    assert sum(many[source]["requests"] for source in ("warm", "disk", "store")) == 80
    assert {tier["tier"]: tier["tenants"] for tier in many["tiers"]} == {"device": 8, "host": 10, "disk": 16}
    assert 0 < many["hit_rates"]["host"] < 1
    assert written["memory"]["resident"] == 24
    assert "24 hPLMs in one memory" in tables
    assert written["registered"]["adapters"] == 200
    assert written["registered"]["answer_of_many"] > 0
    assert (tmp_path / "scale-throughput.png").exists()
    assert (tmp_path / "scale-registration.png").exists()


def test_one_more_adapter_takes_the_same_number_of_statements(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    few, many = catalog.measure([3, 60])
    catalog.close()
    assert few.total.statements == many.total.statements
    assert [step.name for step in few.steps] == [step.name for step in many.steps]


def test_popular_adapters_get_most_requests() -> None:
    adapters = list(range(50))
    drawn = zipf_requests(adapters, ["text"], 5_000, exponent=1.0, seed=0)  # type: ignore[arg-type]
    counts = Counter(request.adapter for request in drawn)
    assert counts[0] > 1.5 * counts[1] > counts[9]  # type: ignore[index]


def test_a_watched_store_records_where_an_adapter_was(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text("{}")
    store = WatchedStore(str(tmp_path / "store"))
    ref = store.publish(ArtifactKind.ADAPTER, made, base_digest="sha256:base")
    assert store.source_since(ref.digest, 0.0) is Source.MEMORY
    store.fetch(ref, tmp_path / "cache")
    assert store.source_since(ref.digest, 0.0) is Source.STORE
    store.fetch(ref, tmp_path / "cache")
    assert store.source_since(ref.digest, 0.0) is Source.DISK
    assert store.source_since(ref.digest, float("inf")) is Source.MEMORY


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="smaller --count"):
        require_disk(tmp_path, 10**9, 10**9)


def test_shared_memory_counts_once_and_adapters_add_to_it() -> None:
    figures = MemoryFigures(
        adapters=100,
        resident=10,
        adapter_bytes=50,
        process_growth=55,
        shared_bytes=500,
        whole_model_bytes=400,
    )
    assert figures.bytes_an_adapter == 5
    assert figures.hplms == 500 + 100 * 5
    assert figures.ratio == 40


def test_every_way_is_called_equally_often_in_alternating_order() -> None:
    called: list[str] = []
    ways = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    seconds = seconds_in_turns(ways, rounds=2)
    assert called == ["a", "b", "a", "b", "b", "a"]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.99, 4), (0.25, 1)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([3, 1, 4, 2], share) == expected


def test_lengths_depend_on_the_seed_alone_and_are_similar_in_a_batch() -> None:
    assert draw_lengths(20, seed=3) == draw_lengths(20, seed=3)
    bucket = text_lengths(8, seed=1)
    assert len(bucket) == 8
    assert max(bucket) - min(bucket) < 20
