"""The benchmarks of refreshes and of the tree, on tables of a few hundred windows."""

import json
from pathlib import Path

from hmi_bench.refresh import SHARES_IN, RefreshPlan, run_refresh
from hmi_bench.refresh_load import LoadPlan, run_load
from hmi_bench.tree import TreePlan, run_tree


def test_a_refresh_follows_a_topic_that_shifts(tmp_path: Path) -> None:
    report = run_refresh(tmp_path, RefreshPlan(base="tiny", windows=300, max_entries=3_000))
    found = json.loads((tmp_path / "refresh.json").read_text())
    assert [cost["windows_in"] for cost in found["costs"]] == [round(300 * share) for share in SHARES_IN]
    shift = found["shift"]
    assert shift["after_shift"] < shift["old_topic"]
    assert shift["after_shift"] < shift["after_refresh"]
    assert shift["backoff_after_shift"] < shift["backoff_after_refresh"]
    assert f"{shift['after_refresh']:.1%}" in report


def test_a_tree_stores_less_and_hits_no_less(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name, own in (("one", "the pump creaks"), ("two", "a tyre squeals")):
        (data / name).mkdir(parents=True)
        rows = [{"text": text} for text in 2 * [own, "on my hill road again today"]]
        for part in ("train", "test"):
            (data / name / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = run_tree(tmp_path, TreePlan(data=data, base="tiny"))
    assert "own layers" not in report  # there are no labels
    found = json.loads((tmp_path / "tree.json").read_text())
    alone, tree = found["alone"], found["tree"]
    assert tree["hit_rates"] == alone["hit_rates"] == {"one": 1.0, "two": 1.0}
    assert tree["parent_windows"] > 0
    assert tree["children_windows"] + 2 * tree["parent_windows"] == alone["children_windows"]
    assert f"{tree['parent_windows']:,}" in report


def test_children_with_labels_are_trained_on_shared_and_on_their_own_layers(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir(parents=True)
        rows = [{"text": f"{name} {word} again", "label": word} for word in ("up", "down")]
        for part in ("train", "validation", "test"):
            (tmp_path / name / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = TreePlan(data=tmp_path, base="tiny", rows=2, epochs=1, steps=1, seeds=(0, 1))
    report = run_tree(tmp_path / "out", plan)
    cost = json.loads((tmp_path / "out" / "tree.json").read_text())["accuracy"]
    assert [(pair["task"], pair["seed"]) for pair in cost["pairs"]] == [
        ("one", 0), ("two", 0), ("one", 1), ("two", 1),
    ]  # fmt: skip
    assert all(pair["first_loss"] != pair["second_loss"] for pair in cost["pairs"])
    assert cost["layers_bytes"] > 0
    assert "| parent's layers, % | own layers, % |" in report


def test_requests_are_answered_beside_refreshes(tmp_path: Path) -> None:
    plan = LoadPlan(base="tiny", windows=200, clients=2, texts=4, seconds=0.2, rounds=1)
    report = run_load(tmp_path, plan)
    load = json.loads((tmp_path / "refresh-load.json").read_text())["load"]
    assert min(load["alone"]["requests_a_second"], load["beside"]["requests_a_second"]) > 0
    assert f"| ratio | {load['throughput_ratio']:.2f} |" in report
