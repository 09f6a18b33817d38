"""Heads with different poolings, labels and dense layers share a batch and give the same logits as alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.heads import run_head, run_heads
from hmi_runtime.adapters.slot_pool import BARE, SlotLimits, SlotPool
from hmi_runtime.adapters.weights import POOLINGS, AdapterWeights, Dense, Head
from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.encoder import Encoder, UpperLayers

WIDTH = 12
CONFIG = EncoderConfig(
    family="bert", layers=2, width=WIDTH, heads=2, ffn_width=16, vocab_size=30, positions=16, segments=1,
    norm_eps=1e-12, activation="gelu", pad_id=0, cls_id=1, sep_id=2,
)  # fmt: skip
LIMITS = SlotLimits(max_rank=8, max_labels=7)


@pytest.fixture(scope="module")
def upper() -> UpperLayers:
    torch.set_num_threads(1)
    return UpperLayers(Encoder(CONFIG).eval().requires_grad_(False), 1)


def adapter_with(head: Head) -> AdapterWeights:
    task = TaskType.TOKEN_CLASSIFICATION if head.pooling == "token" else TaskType.SEQUENCE_CLASSIFICATION
    labels = tuple(str(i) for i in range(head.weight.shape[0]))
    return AdapterWeights(task=task, labels=labels, layers={}, head=head, base_digest="sha256:base")


@st.composite
def heads(draw: st.DrawFn) -> Head:
    seed = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    pooling = draw(st.sampled_from(POOLINGS))
    labels = draw(st.integers(1, LIMITS.max_labels))
    activation = draw(st.sampled_from(["tanh", "relu", "gelu", None]))
    dense = None
    if activation is not None and pooling != "first_and_mean":
        dense = Dense(
            torch.randn(WIDTH, WIDTH, generator=seed), torch.randn(WIDTH, generator=seed), activation
        )
    inner = 2 * WIDTH if pooling == "first_and_mean" else WIDTH
    return Head(
        pooling, torch.randn(labels, inner, generator=seed), torch.randn(labels, generator=seed), dense
    )


@settings(max_examples=60, deadline=None)
@given(stored=st.lists(heads(), min_size=1, max_size=4), length=st.integers(1, 6), data=st.data())
def test_every_row_gets_the_logits_of_its_own_head(
    upper: UpperLayers, stored: list[Head], length: int, data: st.DataObject
) -> None:
    pool = SlotPool(upper, 4, LIMITS)
    for slot, head in enumerate(stored):
        pool.write(slot, adapter_with(head))
    slots = data.draw(st.lists(st.integers(0, len(stored) - 1), min_size=1, max_size=6))
    lengths = data.draw(st.lists(st.integers(1, length), min_size=len(slots), max_size=len(slots)))
    hidden = torch.randn(len(slots), length, WIDTH, generator=torch.Generator().manual_seed(length))
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]  # (B, T)
    before = hidden.clone()

    found = run_heads(pool, hidden, mask, slots)

    assert torch.equal(hidden, before)
    for row, slot in enumerate(slots):
        expected = run_head(stored[slot], hidden[row], mask[row])
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_a_row_without_an_adapter_has_no_head(upper: UpperLayers) -> None:
    pool = SlotPool(upper, 1, LIMITS)
    with pytest.raises(InvalidInput, match="AdapterMissing"):
        run_heads(pool, torch.zeros(1, 2, WIDTH), torch.ones(1, 2, dtype=torch.bool), [BARE])


def test_a_head_with_too_many_labels_for_a_slot_is_refused(upper: UpperLayers) -> None:
    head = Head("first", torch.zeros(8, WIDTH), torch.zeros(8))
    with pytest.raises(InvalidInput, match="number of labels is 8"):
        SlotPool(upper, 1, LIMITS).write(0, adapter_with(head))
