"""Tree benchmark: what it saves to store the windows of several children once, in their parent.

Only children that keep their parent's layers can share windows. What that costs in accuracy is measured too,
where the children have labels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hmi_api.resources.task_adapter import TaskType
from hmi_bench import results
from hmi_bench.accuracy.sharing import Budget, SharingCost, measure_sharing, sharing_report
from hmi_bench.accuracy.tasks import read_tasks
from hmi_bench.base_models import open_base
from hmi_bench.refresh import count_windows, hit_rate, new_folder
from hmi_control_plane.window_counts.arrays import KeyCounts
from hmi_control_plane.window_counts.privacy import Place, split_by_place
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.tables.refresh import Traffic, refresh_table
from hmi_runtime.tables.table import TABLE_FILE, PlotTable
from hmi_runtime.training.precision import step_precision

_LAYERS = "sha256:benchmark"


@dataclass(frozen=True)
class TreePlan:
    """Parameters: a folder with a folder for each child, which has train.jsonl and test.jsonl with ``text``.

    The texts of train.jsonl are the counted traffic; those of test.jsonl measure the hit rates. Children with
    labels, and validation.jsonl, are trained and tested too: each seed trains layers for ``steps``, and
    adapters on ``rows`` for ``epochs``.
    """

    data: Path
    base: str = "minilm"
    min_frequency: int = 2
    max_entries: int = 200_000
    rows: int = 400
    epochs: int = 6
    steps: int = 100
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Stored:
    """The tables of a tree: windows and bytes of files, and hit rates, 0 to 1, by child."""

    parent_windows: int
    children_windows: int
    bytes: int
    hit_rates: dict[str, float]

    @property
    def mean_hit_rate(self) -> float:
        """Mean over the children."""
        return sum(self.hit_rates.values()) / len(self.hit_rates)


def run_tree(out: Path, plan: TreePlan) -> str:
    """Measure ``plan``, write ``tree.json`` under ``out``, and return the report."""
    with TemporaryDirectory(prefix="hmi-tree-") as name:
        base = open_base(plan.base, new_folder(Path(name)))
        layers = DomainLayers.from_encoder(
            base.encoder(), base.config.layers // 2, bridge_heads=4, bridge_head_size=24
        )
        alone, tree = _Tree(Path(name), base, layers.requires_grad_(False).eval(), plan).measure()
        cost = _sharing_cost(base, new_folder(Path(name)), plan)
    results.write_json(
        out / "tree.json",
        plan={key: str(value) for key, value in asdict(plan).items()},
        alone=asdict(alone),
        tree=asdict(tree),
        accuracy=cost and asdict(cost),
    )
    report = _report(alone, tree)
    return f"{report}\n\n{sharing_report(cost)}" if cost else report


def _sharing_cost(base: BaseModel, folder: Path, plan: TreePlan) -> SharingCost | None:
    """Return what sharing layers costs in accuracy; None if no child has labels for its texts."""
    tasks = [task for task in read_tasks(plan.data, {}) if task.type is TaskType.SEQUENCE_CLASSIFICATION]
    if not tasks:
        return None
    budget = Budget(rows=plan.rows, epochs=plan.epochs, steps=plan.steps, seeds=plan.seeds)
    return measure_sharing(base, tasks, folder, budget, step_precision("auto"))


@dataclass(frozen=True)
class _Tree:
    """A parent without traffic of its own, and children that share its layers; one tenant has all of them."""

    folder: Path
    base: BaseModel
    layers: DomainLayers
    plan: TreePlan

    def measure(self) -> tuple[Stored, Stored]:
        """Return what is stored when each child has its windows itself, and after refreshes of the tree."""
        children = sorted(path for path in self.plan.data.iterdir() if (path / "train.jsonl").is_file())
        traffic = {child.name: count_windows(self.base, _texts(child / "train.jsonl")) for child in children}
        empty = PlotTable.from_outputs(
            torch.empty(0, dtype=torch.int64),
            torch.empty(0, 3, self.base.config.width),
            vocab_size=self.base.config.vocab_size,
            layers_digest=_LAYERS,
        )
        alone = {name: self._refreshed(empty, one) for name, one in traffic.items()}
        before = self._stored(None, alone)
        parent = self._refreshed(empty, self._parents_traffic(list(traffic.values())))
        shared = {name: self._refreshed(alone[name][0], one, [parent[0]]) for name, one in traffic.items()}
        return before, self._stored(parent, shared)

    def _parents_traffic(self, traffic: Sequence[Traffic]) -> Traffic:
        """Return what the control plane would give a refresh run of the parent."""
        nothing = KeyCounts.merge([])
        places = [
            Place(KeyCounts.merge([KeyCounts(one.keys, one.counts)]), {}, self.plan.min_frequency)
            for one in traffic
        ]
        several, theirs = split_by_place([Place(nothing, {}), *places], 3)
        return replace(Traffic(several.keys, several.counts, 0), belongs_to_child=theirs.keys)

    def _refreshed(
        self, present: PlotTable, traffic: Traffic, ancestors: Sequence[PlotTable] = ()
    ) -> tuple[PlotTable, int]:
        """Return the next table and the bytes of its file."""
        target = new_folder(self.folder)
        refresh_table(
            target,
            present,
            traffic,
            self.layers,
            max_entries=self.plan.max_entries,
            min_frequency=self.plan.min_frequency,
            ancestors=ancestors,
        )
        return PlotTable.load(target), (target / TABLE_FILE).stat().st_size

    def _stored(
        self, parent: tuple[PlotTable, int] | None, children: dict[str, tuple[PlotTable, int]]
    ) -> Stored:
        above = [] if parent is None else [parent[0]]
        return Stored(
            parent_windows=sum(table.entries for table in above),
            children_windows=sum(table.entries for table, _ in children.values()),
            bytes=sum(size for _, size in [*children.values(), *([] if parent is None else [parent])]),
            hit_rates={
                name: hit_rate(
                    [table, *above], self.base, self.layers, _texts(self.plan.data / name / "test.jsonl")
                )
                for name, (table, _) in children.items()
            },
        )


def _texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def _report(alone: Stored, tree: Stored) -> str:
    lines = [
        "| tables | windows of the parent | of all children | bytes | mean hit rate |",
        "|---|---|---|---|---|",
    ]
    for name, one in (("each child its own", alone), ("the tree", tree)):
        lines.append(
            f"| {name} | {one.parent_windows:,} | {one.children_windows:,} | {one.bytes / 1e6:.1f} MB "
            f"| {one.mean_hit_rate:.1%} |"
        )
    lines += ["", "| child | hit rate, its own table | the tree |", "|---|---|---|"]
    for name, rate in alone.hit_rates.items():
        lines.append(f"| {name} | {rate:.1%} | {tree.hit_rates[name]:.1%} |")
    return "\n".join(lines)
