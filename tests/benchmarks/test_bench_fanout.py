"""The fan-out benchmark: the timed ways answer correctly, and the report is complete."""

import json
from pathlib import Path

import pytest
import torch

from hmi_bench.base_models import open_base
from hmi_bench.fanout import MERGED, ONE_REQUEST, FanoutPlan, MergedModel, ask, make_tasks, merge, run_fanout
from hmi_bench.runtime_setup import publish_domain, runtime_settings, serving
from hmi_bench.texts import TextMaker
from hmi_runtime.adapters.reference import run_row
from hmi_runtime.adapters.weights import AdapterWeights, Bottleneck, LayerAdapter
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.models.source import BaseModel

SPLIT = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    torch.set_num_threads(1)
    return open_base("tiny", tmp_path_factory.mktemp("base"))


def test_a_merged_model_computes_what_its_adapter_does(base: BaseModel) -> None:
    adapter = next(iter(make_tasks(base, SPLIT, "sha256:layers", rank=4).values()))
    frozen, merged = base.encoder(), merge(base.encoder(), adapter)
    ids, mask = torch.tensor([[101, 2054, 2003, 102]]), torch.ones(1, 4, dtype=torch.bool)
    with torch.inference_mode():
        lower = frozen.hidden_states(ids, mask)[SPLIT][0]
        expected = run_row(UpperLayers(frozen, SPLIT), adapter, lower, mask[0])
        torch.testing.assert_close(merged(ids, mask)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_bottleneck_is_not_merged(base: BaseModel) -> None:
    adapter = next(iter(make_tasks(base, SPLIT, "sha256:layers", rank=4).values()))
    narrow = Bottleneck(torch.zeros(2, 24), torch.zeros(2), torch.zeros(24, 2), torch.zeros(24))
    changed = AdapterWeights(
        adapter.task,
        adapter.labels,
        {SPLIT: LayerAdapter(bottlenecks={"ffn": narrow})},
        adapter.head,
        adapter.base_digest,
    )
    with pytest.raises(ValueError, match="bottleneck"):
        merge(base.encoder(), changed)


def test_one_request_answers_every_task_about_a_text_in_the_table(base: BaseModel, tmp_path: Path) -> None:
    text = TextMaker(base).text(12)
    domain = publish_domain(base, ArtifactStore(str(tmp_path / "store")), [text], other_entries=50)
    tasks = make_tasks(base, domain.split, domain.layers_digest, rank=4)
    with serving(runtime_settings(tmp_path, device_slots=12), domain.store) as loader:
        for key, weights in tasks.items():
            loader.activate(loader.load(domain.publish(key, weights), domain.serving))
        answers = ask(loader, list(tasks), text)
        with pytest.raises(RuntimeError, match="NotLoaded"):
            ask(loader, ["bench/unknown"], text)
    assert [answer.labels for answer in answers] == [list(weights.labels) for weights in tasks.values()]
    assert all(answer.table_hits == answer.table_lookups == answer.prompt_tokens == 12 for answer in answers)
    assert answers[-1].scores == []
    alone = [MergedModel(base, weights, torch.device("cpu")).answer(text) for weights in tasks.values()]
    assert [tuple(answer.shape) for answer in alone] == [(2,), (3,), (5,), (8,), (14,), (12, 9)]


def test_the_report_has_every_way_at_every_length(tmp_path: Path) -> None:
    plan = FanoutPlan(base="tiny", lengths=(6, 10), rounds=1, rank=4, other_entries=50)
    table = run_fanout(tmp_path, plan)
    written = json.loads((tmp_path / "fanout.json").read_text())
    assert {timing["size"] for timing in written["timings"]} == {6, 10}
    assert len(written["timings"]) == 2 * 4
    assert ONE_REQUEST in table
    assert MERGED in table
    assert (tmp_path / "fanout.png").stat().st_size > 0
