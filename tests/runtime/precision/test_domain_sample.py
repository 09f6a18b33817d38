"""The texts that candidates are compared on are made of a table's frequent windows, and of nothing else."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support_encoders import POST_NORM, random_encoder

from hmi_api.resources.domain import OnMiss
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.windows import ABSENT, pack, trigrams
from hmi_runtime.precision.sample import domain_sample, frequent_texts
from hmi_runtime.serving.loaded import LoadedDomain
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.table import PlotTable

LAYERS = "sha256:layers"


def table_of(windows: Sequence[Sequence[int]], vocabulary: int = 20, width: int = 4) -> PlotTable:
    keys = pack(torch.tensor(windows).view(-1, 3), vocabulary)
    outputs = torch.zeros(len(keys), 3, width)
    return PlotTable.from_outputs(keys, outputs, vocab_size=vocabulary, layers_digest=LAYERS)


def test_windows_that_follow_one_another_become_a_text() -> None:
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 6, 9, 2]])
    windows = trigrams(ids, torch.ones_like(ids, dtype=torch.bool)).flatten(0, 1).tolist()
    assert frequent_texts(table_of(windows), 2, 5).tolist() == ids.tolist()


def test_frequent_windows_go_before_rare_ones() -> None:
    windows = [[ABSENT, 1, 5], [1, 5, 7], [1, 5, 6], [5, 7, 2], [5, 6, 2]]
    assert frequent_texts(table_of(windows), 1, 4).tolist() == [[1, 5, 7, 2]]


WINDOWS = st.tuples(st.integers(ABSENT, 19), st.integers(0, 19), st.integers(ABSENT, 19))


@given(
    st.lists(WINDOWS, min_size=1, unique=True),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_texts_of_any_table_have_its_tokens_and_the_asked_size(
    windows: list[tuple[int, int, int]], rows: int, length: int
) -> None:
    table = table_of(windows)
    ids = frequent_texts(table, rows, length)
    assert ids.shape == (rows, length)
    assert set(ids.flatten().tolist()) <= {token for window in windows for token in window} - {ABSENT}
    assert torch.equal(ids, frequent_texts(table, rows, length))


@pytest.fixture
def layers() -> DomainLayers:
    encoder = random_encoder(POST_NORM)
    made = DomainLayers.from_encoder(encoder, 1, bridge_heads=2, bridge_head_size=4)
    return made.requires_grad_(False).eval()


def _domain(layers: DomainLayers, tables: list[PlotTable]) -> LoadedDomain:
    lookup = TreeLookup(tables, layers, layers_digest=LAYERS, on_miss=OnMiss.COMPUTE)
    return LoadedDomain("shop/hotel", 3, lookup)


def test_states_are_what_the_layers_compute_for_the_texts(layers: DomainLayers) -> None:
    encoder = layers.config.encoder
    ids = torch.tensor([[1, 5, 6, 7, 4, 2]])
    windows = trigrams(ids, torch.ones_like(ids, dtype=torch.bool))[0]
    with torch.no_grad():
        table = PlotTable.from_outputs(
            pack(windows, encoder.vocab_size),
            layers.window_outputs(windows),
            vocab_size=encoder.vocab_size,
            layers_digest=LAYERS,
        )
        texts = frequent_texts(table, 3, 8)
        expected = layers.represent(texts, torch.ones_like(texts, dtype=torch.bool))
    sample = domain_sample(_domain(layers, [table]), 3, 8)
    assert sample.source == "windows of shop/hotel@3"
    torch.testing.assert_close(sample.hidden, expected, atol=2e-2, rtol=1e-2)  # tables are float16


def test_a_domain_without_a_table_gets_random_words(layers: DomainLayers) -> None:
    sample = domain_sample(_domain(layers, []), 2, 8)
    assert sample.source == "random words on shop/hotel@3"
    assert sample.hidden.shape == (2, 8, layers.config.encoder.width)
