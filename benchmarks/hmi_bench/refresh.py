"""Refresh benchmark: what a refresh of a table costs, and what it does when the topic of traffic shifts."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from hmi_api.resources.domain import OnMiss
from hmi_bench import results
from hmi_bench.base_models import open_base
from hmi_bench.timing import seconds_of
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.packing import pad_tokens
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import compose, pack, trigrams
from hmi_runtime.tables.build import build_table
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.refresh import RefreshReport, Traffic, refresh_table
from hmi_runtime.tables.table import PlotTable

_LAYERS = "sha256:benchmark"
_MAX_LENGTH = 64
_AT_ONCE = 32
_EXAMPLES = Path(__file__).parents[2] / "examples" / "demo" / "data" / "corpus"
SHARES_IN = (0.0, 0.1, 0.5)


@dataclass(frozen=True)
class RefreshPlan:
    """Parameters: the windows of the timed tables, and the texts before and after the topic shifts."""

    base: str = "minilm"
    windows: int = 100_000
    before: Path = _EXAMPLES / "workshop.txt"
    after: Path = _EXAMPLES / "hotel.txt"
    max_entries: int = 5_000


@dataclass(frozen=True)
class Cost:
    """Seconds of one refresh in which a share of the table's windows came in and as many left."""

    share_in: float
    windows: int
    windows_in: int
    seconds: float


@dataclass(frozen=True)
class Shift:
    """Hit rates, 0 to 1, of texts on the old topic, then of the new one before and after a refresh.

    ``backoff_*`` are the mean cosines between positions that ``Backoff`` composes and exact ones.
    """

    old_topic: float
    after_shift: float
    after_refresh: float
    old_topic_after: float
    windows_in: int
    windows_out: int
    backoff_after_shift: float
    backoff_after_refresh: float


def run_refresh(out: Path, plan: RefreshPlan) -> str:
    """Measure ``plan``, write ``refresh.json`` under ``out``, and return the report."""
    with TemporaryDirectory(prefix="hmi-refresh-") as name:
        folder = Path(name)
        base = open_base(plan.base, new_folder(folder))
        layers = DomainLayers.from_encoder(
            base.encoder(), base.config.layers // 2, bridge_heads=4, bridge_head_size=24
        )
        layers.requires_grad_(False).eval()
        costs = [_cost(folder, layers, plan.windows, share) for share in SHARES_IN]
        shift = _shift(folder, base, layers, plan)
    results.write_json(
        out / "refresh.json",
        plan={key: str(value) for key, value in asdict(plan).items()},
        costs=[asdict(cost) for cost in costs],
        shift=asdict(shift),
    )
    return _report(costs, shift)


def _cost(folder: Path, layers: DomainLayers, windows: int, share: float) -> Cost:
    refresh, windows_in = make_refresh(folder, layers, windows, share)
    return Cost(share, windows, windows_in, seconds_of(refresh))


def make_refresh(
    folder: Path, layers: DomainLayers, windows: int, share: float
) -> tuple[Callable[[], None], int]:
    """Store a table of random windows; return what refreshes it, and how many windows (``share``) come in."""
    source = torch.Generator().manual_seed(0)
    vocabulary = layers.config.encoder.vocab_size
    ids = torch.randint(0, vocabulary, (2 * windows, 3), generator=source)
    keys = torch.unique(pack(ids, vocabulary))
    keys = keys[torch.randperm(len(keys), generator=source)][: windows + round(share * windows)]
    width = layers.config.encoder.width
    present = PlotTable.from_outputs(
        keys[:windows],
        torch.randn(windows, 3, width, generator=source),
        vocab_size=vocabulary,
        layers_digest=_LAYERS,
    )
    stored, target = new_folder(folder), new_folder(folder)
    present.save(stored)
    fresh = keys[windows:].numpy()
    traffic = Traffic(fresh, np.full(len(fresh), 1000, dtype=np.int64), 0)

    def refresh() -> None:
        table = PlotTable.load(stored)
        refresh_table(target, table, traffic, layers, max_entries=windows, min_frequency=1)

    return refresh, len(fresh)


def refresh_again_and_again(folder: Path, base: str, windows: int, threads: int, ready: Event) -> None:
    """Refresh a table in the new ``folder``, in each of which half of the windows comes in, without end."""
    torch.set_num_threads(threads)
    folder.mkdir()
    refresh, _ = make_refresh(folder, _layers(open_base(base, new_folder(folder))), windows, 0.5)
    ready.set()
    while True:
        refresh()


def _layers(base: BaseModel) -> DomainLayers:
    layers = DomainLayers.from_encoder(
        base.encoder(), base.config.layers // 2, bridge_heads=4, bridge_head_size=24
    )
    return layers.requires_grad_(False).eval()


def _shift(folder: Path, base: BaseModel, layers: DomainLayers, plan: RefreshPlan) -> Shift:
    old, new = _lines(plan.before), _lines(plan.after)
    corpus, held_out = old[::2], old[1::2]
    traffic, later = count_windows(base, [*held_out[::2], *new[::2]]), new[1::2]
    held_out = held_out[1::2]

    def refreshed(on_miss: OnMiss) -> tuple[PlotTable, PlotTable, RefreshReport]:
        """Return the table of the corpus, the next one, and what the refresh changed."""
        stored, target, most = new_folder(folder), new_folder(folder), plan.max_entries
        build_table(
            stored,
            _batches(base, corpus),
            layers,
            layers_digest=_LAYERS,
            max_entries=most,
            min_frequency=1,
            on_miss=on_miss,
        )
        present = PlotTable.load(stored)
        report = refresh_table(
            target, present, traffic, layers, max_entries=most, min_frequency=1, on_miss=on_miss
        )
        return present, PlotTable.load(target), report

    present, following, report = refreshed(OnMiss.COMPUTE)
    approximate, better, _ = refreshed(OnMiss.BACKOFF)
    return Shift(
        old_topic=hit_rate([present], base, layers, held_out),
        after_shift=hit_rate([present], base, layers, later),
        after_refresh=hit_rate([following], base, layers, later),
        old_topic_after=hit_rate([following], base, layers, held_out),
        windows_in=report.windows_in,
        windows_out=report.windows_out,
        backoff_after_shift=_fidelity(approximate, base, layers, later),
        backoff_after_refresh=_fidelity(better, base, layers, later),
    )


def hit_rate(
    tables: Sequence[PlotTable], base: BaseModel, layers: DomainLayers, texts: Sequence[str]
) -> float:
    """Return the share, 0 to 1, of the windows of ``texts`` that a table has."""
    lookup = TreeLookup(tables, layers, layers_digest=_LAYERS, on_miss=OnMiss.COMPUTE)
    return lookup.coverage(trigrams(ids, mask)[mask] for ids, mask in _batches(base, texts))


@torch.no_grad()
def _fidelity(table: PlotTable, base: BaseModel, layers: DomainLayers, texts: Sequence[str]) -> float:
    """Return the mean cosine between positions from the table under ``Backoff`` and exact ones."""
    lookup = TreeLookup([table], layers, layers_digest=_LAYERS, on_miss=OnMiss.BACKOFF)
    cosines = []
    for ids, mask in _batches(base, texts):
        lengths, longest = mask.sum(1).tolist(), ids.shape[1]
        windows = trigrams(ids, mask)[mask]  # (N, 3)
        keys = pack(windows, base.config.vocab_size).numpy()
        found, _ = pad_tokens(lookup.lookup(keys).outputs, lengths, longest)
        exact, _ = pad_tokens(layers.window_outputs(windows).float(), lengths, longest)
        cosines.append(torch.cosine_similarity(compose(found), compose(exact), dim=-1)[mask])
    return float(torch.cat(cosines).mean())


def count_windows(base: BaseModel, texts: Sequence[str]) -> Traffic:
    """Return the windows of ``texts`` as lookups that were counted."""
    counts: Counter[int] = Counter()
    for ids, mask in _batches(base, texts):
        counts.update(pack(trigrams(ids, mask)[mask], base.config.vocab_size).tolist())
    keys, numbers = (np.array(list(some), dtype=np.int64) for some in (counts, counts.values()))
    return Traffic(keys, numbers, int(numbers.sum()))


def _batches(base: BaseModel, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield padded ids (B, T) int64 and masks (B, T) bool."""
    for start in range(0, len(texts), _AT_ONCE):
        encodings = base.tokenizer.encode(list(texts[start : start + _AT_ONCE]), _MAX_LENGTH)
        longest = max(len(one.ids) for one in encodings)
        ids = torch.full((len(encodings), longest), base.config.pad_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, one in enumerate(encodings):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            mask[row, : len(one.ids)] = True
        yield ids, mask


def _lines(path: Path) -> list[str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    random.Random(0).shuffle(lines)  # noqa: S311 - an order, no secret
    return lines


def new_folder(folder: Path) -> Path:
    """Make an empty folder in ``folder`` and return it."""
    made = folder / str(len(list(folder.iterdir())))
    made.mkdir()
    return made


def _report(costs: Sequence[Cost], shift: Shift) -> str:
    lines = ["| windows that come in | seconds per 100,000 windows |", "|---|---|"]
    for cost in costs:
        lines.append(f"| {cost.share_in:.0%} | {cost.seconds * 100_000 / cost.windows:.2f} |")
    lines += [
        "",
        f"{shift.windows_in:,} windows came in, {shift.windows_out:,} left.",
        "",
        "| hit rate | |",
        "|---|---|",
        f"| the old topic | {shift.old_topic:.1%} |",
        f"| the new topic, before the refresh | {shift.after_shift:.1%} |",
        f"| the new topic, after the refresh, other texts | {shift.after_refresh:.1%} |",
        f"| the old topic, after the refresh | {shift.old_topic_after:.1%} |",
        "",
        "`Backoff`, mean cosine of positions to exact ones on the new topic: "
        f"{shift.backoff_after_shift:.3f} before, {shift.backoff_after_refresh:.3f} after.",
    ]
    return "\n".join(lines)
