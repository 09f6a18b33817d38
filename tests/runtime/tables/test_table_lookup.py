"""Lookups equal the window-local model (Compute) or follow the backoff order, whatever the tables contain."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_api.errors import InvalidInput
from hmi_api.resources.domain import OnMiss, TableDtype
from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.packing import window_keys
from hmi_runtime.models.windows import ABSENT, pack, trigrams, unpack
from hmi_runtime.tables.lookup import LookupResult, LookupSource, TreeLookup, lookup_many
from hmi_runtime.tables.reference import lookup_reference
from hmi_runtime.tables.table import PlotTable

torch.set_num_threads(1)

VOCABULARY = 9
SIZES = EncoderConfig(
    family="bert",
    layers=2,
    width=8,
    heads=2,
    ffn_width=16,
    vocab_size=VOCABULARY,
    positions=16,
    segments=2,
    norm_eps=1e-12,
    activation="gelu",
    pad_id=0,
    cls_id=1,
    sep_id=2,
)
OWN, OTHER = "sha256:own", "sha256:other"
# Absolute tolerances: layers end in a LayerNorm, so outputs are of the order of one.
TOLERANCE = {None: 1e-5, TableDtype.FLOAT16: 4e-3, TableDtype.INT8: 2e-2}


@cache
def layers(seed: int = 0) -> DomainLayers:
    torch.manual_seed(seed)
    made = DomainLayers.from_encoder(Encoder(SIZES), 1, bridge_heads=0, bridge_head_size=8)
    torch.nn.init.normal_(made.gates)
    return made.requires_grad_(False).eval()


def all_windows() -> torch.Tensor:
    return unpack(torch.arange((VOCABULARY + 1) ** 3), VOCABULARY)


def possible_windows() -> torch.Tensor:
    """Every window that a text can have: the centre is never ABSENT."""
    windows = all_windows()
    return windows[windows[:, 1] != ABSENT]


def table_of(windows: torch.Tensor, digest: str, dtype: TableDtype | None, maker: DomainLayers) -> PlotTable:
    """A table of ``windows``; dtype None keeps float32, so that only the lookup itself can be wrong."""
    keys = pack(windows, VOCABULARY).unique()
    keys = keys[torch.randperm(len(keys))]
    outputs = maker.window_outputs(unpack(keys, VOCABULARY))
    table = PlotTable.from_outputs(
        keys, outputs, vocab_size=VOCABULARY, layers_digest=digest, dtype=dtype or TableDtype.FLOAT16
    )
    return table if dtype else PlotTable(**{**vars(table), "values": outputs})


@dataclass(frozen=True)
class Tree:
    """Shape of a random tree: for each table, its share of all windows, its maker and its type."""

    shares: list[float]
    same_layers: list[bool]
    dtype: TableDtype | None
    on_miss: OnMiss
    recent_rows: int

    def lookup(self) -> TreeLookup:
        tables = []
        for source, (share, same) in enumerate(zip(self.shares, self.same_layers, strict=True)):
            own = source == 0 or same
            windows = all_windows()
            stored = windows[torch.rand(len(windows)) < share]
            tables.append(table_of(stored, OWN if own else OTHER, self.dtype, layers(0 if own else 1)))
        return TreeLookup(
            tables,
            layers(),
            layers_digest=OWN,
            on_miss=self.on_miss,
            recent_bytes=self.recent_rows * 3 * SIZES.width * 4,
        )


def look_up(lookup: TreeLookup, windows: torch.Tensor) -> LookupResult:
    return lookup.lookup(pack(windows, VOCABULARY).numpy())


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    depth = draw(st.integers(0, 3))
    return Tree(
        shares=draw(st.lists(st.sampled_from([0.0, 0.05, 0.4, 1.0]), min_size=depth, max_size=depth)),
        same_layers=draw(st.lists(st.booleans(), min_size=depth, max_size=depth)),
        dtype=draw(st.sampled_from([None, *TableDtype])),
        on_miss=draw(st.sampled_from(list(OnMiss))),
        recent_rows=draw(st.sampled_from([0, 2, 40, 10_000])),
    )


def draw_windows(count: int) -> torch.Tensor:
    windows = possible_windows()
    return windows[torch.randint(len(windows), (count,))]


@settings(deadline=None, max_examples=40)
@given(tree=trees(), seed=st.integers(0, 2**16), sizes=st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_the_lookup_equals_the_reference_and_the_layers(tree: Tree, seed: int, sizes: list[int]) -> None:
    torch.manual_seed(seed)
    lookup = tree.lookup()
    for size in sizes:
        windows = draw_windows(size)
        result = look_up(lookup, windows)
        assert result.outputs.shape == (size, 3, SIZES.width)
        assert result.outputs.dtype == torch.float32
        if not size:
            continue
        torch.testing.assert_close(result.outputs, lookup_reference(lookup, windows), rtol=0, atol=1e-5)
        if tree.on_miss is OnMiss.COMPUTE:
            truth = layers().window_outputs(windows)
            torch.testing.assert_close(result.outputs, truth, rtol=0, atol=TOLERANCE[tree.dtype])


@settings(deadline=None, max_examples=20)
@given(tree=trees(), seed=st.integers(0, 2**16), rows=st.integers(1, 4), length=st.integers(1, 9))
def test_a_mixed_batch_equals_each_row_alone(tree: Tree, seed: int, rows: int, length: int) -> None:
    torch.manual_seed(seed)
    lookups = [tree.lookup(), tree.lookup(), tree.lookup()]
    lengths = torch.randint(1, length + 1, (rows,)).tolist()
    texts = [torch.randint(VOCABULARY, (1, tokens)) for tokens in lengths]
    windows = [trigrams(ids, torch.ones_like(ids, dtype=torch.bool))[0] for ids in texts]
    chosen = sorted(torch.randint(len(lookups), (rows,)).tolist())
    spans = [(lookups[which], tokens) for which, tokens in zip(chosen, lengths, strict=True)]
    ids = torch.cat(texts, dim=1)[0].numpy()

    batch = lookup_many(spans, window_keys(ids, lengths, VOCABULARY + 1))

    alone = [lookup_reference(lookup, some) for (lookup, _), some in zip(spans, windows, strict=True)]
    torch.testing.assert_close(batch.outputs, torch.cat(alone), rtol=0, atol=1e-5)
    assert len(batch.sources) == sum(lengths)


def test_a_composed_batch_equals_the_layers_outputs() -> None:
    torch.manual_seed(0)
    lookup = Tree([0.5], [True], None, OnMiss.COMPUTE, 100).lookup()
    ids = torch.randint(VOCABULARY, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    batch = look_up(lookup, trigrams(ids, mask)[mask])
    combined = layers().combine_tokens(batch.outputs, [7, 4, 1])
    torch.testing.assert_close(combined, layers().represent(ids, mask)[mask], rtol=0, atol=1e-5)


def compute_tree(share: float, recent_rows: int = 100) -> Tree:
    return Tree([share], [True], None, OnMiss.COMPUTE, recent_rows)


def test_a_window_missed_twice_is_computed_once() -> None:
    lookup = compute_tree(0.0).lookup()
    window = torch.tensor([[3, 4, 5]])
    first, second = look_up(lookup, window.repeat(4, 1)), look_up(lookup, window)
    assert first.sources.tolist() == [LookupSource.COMPUTED] * 4
    assert second.sources.tolist() == [LookupSource.RECENT]
    assert torch.equal(first.outputs[:1], second.outputs)


def test_threads_that_share_a_lookup_all_get_the_right_outputs() -> None:
    torch.manual_seed(0)
    lookup = compute_tree(0.2, recent_rows=20).lookup()
    batches = [draw_windows(20) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda windows: look_up(lookup, windows).outputs, batches))
    for windows, outputs in zip(batches, answers, strict=True):
        torch.testing.assert_close(outputs, layers().window_outputs(windows), rtol=0, atol=1e-5)


def test_every_window_has_its_source() -> None:
    own, parent, grandparent = torch.tensor([[3, 4, 5]]), torch.tensor([[4, 5, 6]]), torch.tensor([[5, 6, 7]])
    tables = [
        table_of(own, OWN, None, layers()),
        table_of(parent, OTHER, None, layers(1)),
        table_of(grandparent, OWN, None, layers()),
    ]
    lookup = TreeLookup(tables, layers(), layers_digest=OWN, on_miss=OnMiss.COMPUTE)
    result = look_up(lookup, torch.cat([own, parent, grandparent, own]))
    assert result.sources.tolist() == [
        LookupSource.OWN_TRIGRAM,
        LookupSource.COMPUTED,
        LookupSource.ANCESTOR_TRIGRAM,
        LookupSource.OWN_TRIGRAM,
    ]
    assert lookup.coverage([torch.cat([own, parent, grandparent, own])]) == 0.75


def test_backoff_tries_left_bigram_right_bigram_unigram_and_then_the_parent() -> None:
    window = torch.tensor([[3, 4, 5]])
    left, right = torch.tensor([[3, 4, ABSENT]]), torch.tensor([[ABSENT, 4, 5]])
    alone = torch.tensor([[ABSENT, 4, ABSENT]])
    parent = table_of(window, OTHER, None, layers(1))

    def sources_and_outputs(own: list[torch.Tensor]) -> tuple[list[int], torch.Tensor]:
        tables = [table_of(torch.cat(own), OWN, None, layers())] if own else []
        tables = [*tables, parent] if own else []
        lookup = TreeLookup(tables, layers(), layers_digest=OWN, on_miss=OnMiss.BACKOFF)
        result = look_up(lookup, window)
        return result.sources.tolist(), result.outputs

    expected = [
        ([left, right, alone], LookupSource.OWN_BIGRAM, left),
        ([right, alone], LookupSource.OWN_BIGRAM, right),
        ([alone], LookupSource.OWN_UNIGRAM, alone),
        ([], LookupSource.COMPUTED, alone),
    ]
    for own, source, answered in expected:
        sources, outputs = sources_and_outputs(own)
        assert sources == [source]
        torch.testing.assert_close(outputs, layers().window_outputs(answered))
    sources, outputs = sources_and_outputs([torch.tensor([[7, 7, 7]])])
    assert sources == [LookupSource.ANCESTOR_TRIGRAM]
    torch.testing.assert_close(outputs, layers(1).window_outputs(window))


def test_the_own_table_must_be_made_by_the_domains_layers() -> None:
    table = table_of(torch.tensor([[3, 4, 5]]), OTHER, None, layers(1))
    with pytest.raises(InvalidInput, match="TableOfOtherLayers"):
        TreeLookup([table], layers(), layers_digest=OWN, on_miss=OnMiss.COMPUTE)
