"""The pure parts of a batch: bridging by domain slot, words from sub-tokens, rows that share a text."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.tokenizer import Encoding
from hmi_runtime.serving.engine import bridge_batched, bridge_on_gpu, bridge_tokens
from hmi_runtime.serving.requests import Text, label_words
from hmi_runtime.serving.staging import Representations

CONFIG = EncoderConfig(
    family="bert", layers=2, width=16, heads=2, ffn_width=20, vocab_size=20, positions=12, segments=1,
    norm_eps=1e-12, activation="gelu", pad_id=0, cls_id=1, sep_id=2,
)  # fmt: skip


def domain(seed: int, heads: int) -> DomainLayers:
    torch.manual_seed(seed)
    layers = DomainLayers.from_encoder(Encoder(CONFIG), 1, bridge_heads=heads, bridge_head_size=8)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return layers.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def domains() -> list[DomainLayers]:
    torch.set_num_threads(1)
    return [domain(seed, heads) for seed, heads in enumerate((2, 2, 1, 0, 2, 0))]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_bridging_a_mixed_batch_equals_bridging_each_row(
    domains: list[DomainLayers], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(domains) - 1), min_size=1, max_size=6, unique=True))
    rows = data.draw(st.lists(st.integers(0, len(chosen) - 1), min_size=1, max_size=9))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=len(rows), max_size=len(rows)))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    parts = torch.randn(len(rows), max(lengths), 3, CONFIG.width) * mask[:, :, None, None]
    for row, length in enumerate(lengths):  # windows give nothing outside of their text
        parts[row, 0, 0] = parts[row, length - 1, 2] = 0
    layers = [domains[index] for index in chosen]
    slots = torch.tensor(rows)
    truth = torch.cat(
        [layers[slot].combine_windows(parts[b : b + 1], mask[b : b + 1]) for b, slot in enumerate(rows)]
    )
    bridged = bridge_batched(layers, slots, parts, mask)
    torch.testing.assert_close(bridged[mask], truth[mask], atol=1e-5, rtol=1e-5)
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    used = sorted(set(rows))
    shared = Representations(
        outputs=torch.cat([parts[row, : lengths[row]] for row in order]),
        lengths=[lengths[row] for row in order],
        domains=[SimpleNamespace(layers=layers[slot]) for slot in used],  # type: ignore[misc]
        texts=[rows.count(slot) for slot in used],
        hits=[0] * len(rows),
        sources=np.zeros(0, np.int8),
        ids=np.zeros(0, np.int64),
    )
    expected = torch.cat([truth[row, : lengths[row]] for row in order])
    on_gpu = bridge_on_gpu(shared, torch.device("cpu"))
    for found in (on_gpu, bridge_tokens(shared, torch.float32)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def text(
    words: tuple[str, ...] | None, content: str, word_ids: list[int | None], offsets: list[tuple[int, int]]
) -> Text:
    return Text(content, words, Encoding([0] * len(word_ids), offsets, word_ids))


def test_the_first_sub_token_decides_a_word() -> None:
    firsts = Encoding([0] * 7, [(0, 0)] * 7, [None, 0, 0, 1, 2, 2, None]).first_tokens()
    assert firsts == [(1, 0), (3, 1), (4, 2)]
    made = text(None, "loose spokes, bent", [None, 0, 1, 1, 2, 3, None],
                [(0, 0), (0, 5), (6, 9), (9, 12), (12, 13), (14, 18), (0, 0)])  # fmt: skip
    probabilities = torch.tensor([[1, 0], [0.9, 0.1], [0.2, 0.8], [1, 0], [0.7, 0.3], [0.4, 0.6], [1, 0]])
    labelled = label_words(made, probabilities.numpy(), ["O", "B-PART"])
    assert [(t.text, t.start, t.end, t.label) for t in labelled] == [
        ("loose", 0, 5, "O"),
        ("spokes", 6, 12, "B-PART"),
        (",", 12, 13, "O"),
        ("bent", 14, 18, "B-PART"),
    ]
    assert labelled[1].score == pytest.approx(0.8)


def test_words_without_tokens_have_no_label() -> None:
    made = text(("a", "\u200b", "b"), "a \u200b b", [None, 0, 2, None], [(0, 0), (0, 1), (0, 1), (0, 0)])
    labelled = label_words(made, np.eye(4, dtype=np.float32), ["w", "x", "y", "z"])
    assert [(t.text, t.start, t.end, t.label) for t in labelled] == [("a", 0, 1, "x"), ("b", 4, 5, "y")]
