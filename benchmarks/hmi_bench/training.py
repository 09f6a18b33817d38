"""Training benchmark: the steps of a Domain, a teacher and adapters, in float32 and in bfloat16 in turns.

Processor time is measured, which other work on the machine changes less than the time on the clock. With one
thread (``--threads 1``) both are the same on an idle machine.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from hmi_api.resources.domain import DomainTraining
from hmi_api.resources.task_adapter import AdapterTraining
from hmi_bench import results
from hmi_bench.base_models import open_base
from hmi_bench.texts import TextMaker, text_lengths
from hmi_runtime.adapters.bottleneck import add_bottlenecks
from hmi_runtime.adapters.heads import HeadModule
from hmi_runtime.adapters.lora import add_lora
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import trigrams
from hmi_runtime.training.adapter_training import BOTTLENECK_WIDTH, DIRECT_LORA_RANK
from hmi_runtime.training.distillation import Distiller, make_optimizer
from hmi_runtime.training.fine_tuning import TaskModel, cross_entropy
from hmi_runtime.training.optim import make_adamw, optimizer_step
from hmi_runtime.training.precision import BFLOAT16, FLOAT32, StepPrecision
from hmi_runtime.training.token_dataset import pad_rows

_PRECISIONS = (FLOAT32, BFLOAT16)
_LABELS = 15
Step = Callable[[StepPrecision], None]
"""Takes one step of the product's training loop, without reading rows."""


@dataclass(frozen=True)
class StepTiming:
    """Median processor seconds of one kind of step; ``ratio`` is the median of the rounds' own ratios."""

    step: str
    rows: int
    tokens: int
    float32: float
    bfloat16: float
    ratio: float


def run_training(out: Path, *, base_name: str = "minilm", rounds: int = 15) -> str:
    """Time the steps of every kind in turns; return the table. Batches have the default sizes."""
    with TemporaryDirectory() as folder:
        timings = _timings(open_base(base_name, Path(folder)), rounds)
    results.write_json(out / "training.json", base=base_name, steps=[asdict(timing) for timing in timings])
    return results.table(
        {
            "step": timing.step,
            "rows": timing.rows,
            "tokens": timing.tokens,
            "float32, ms": timing.float32 * 1000,
            "bfloat16, ms": timing.bfloat16 * 1000,
            "bfloat16 / float32": timing.ratio,
        }
        for timing in timings
    )


def _timings(base: BaseModel, rounds: int) -> list[StepTiming]:
    many, few = DomainTraining().batch_size, AdapterTraining().batch_size
    split = base.config.layers // 2
    ids, mask = _batch(base, few)
    with torch.no_grad():
        features = base.encoder().hidden_states(ids, mask)[split]  # (B, T, D)
    timings = [_timed("distillation of a Domain", _distillation(base, many), _batch(base, many)[1], rounds)]
    whole = base.encoder().requires_grad_(True)
    timings.append(_timed("teacher", _fine_tuning(base, whole, ids, mask), mask, rounds))
    for name, body in _adapters(base, split).items():
        timings.append(_timed(name, _fine_tuning(base, body, features, mask), mask, rounds))
    return timings


def _batch(base: BaseModel, rows: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and mask (B, T) of random texts of similar lengths."""
    texts = TextMaker(base).texts(text_lengths(rows))
    encoded = base.tokenizer.encode(texts, base.config.positions)
    return pad_rows([np.array(encoding.ids, np.int64) for encoding in encoded], base.config.pad_id)


def _distillation(base: BaseModel, rows: int) -> Step:
    """Return a step of layers with the bridge that Domains have by default."""
    ids, mask = _batch(base, rows)
    windows = trigrams(ids, mask)  # (B, T, 3)
    encoder = base.encoder()
    layers = DomainLayers.from_encoder(encoder, base.config.layers // 2, bridge_heads=4, bridge_head_size=24)
    distiller, optimizer = Distiller(encoder, layers), make_optimizer(layers, DomainTraining())

    def step(precision: StepPrecision) -> None:
        optimizer_step(distiller.loss(ids, mask, windows, precision), layers, optimizer)

    return step


def _adapters(base: BaseModel, split: int) -> dict[str, UpperLayers]:
    """Return the upper layers as each method of an adapter trains them."""
    compressed, direct, bottleneck = (
        UpperLayers(base.encoder(), split).requires_grad_(False) for _ in range(3)
    )
    compressed.layers.requires_grad_(True)
    add_lora(direct, DIRECT_LORA_RANK)
    add_bottlenecks(bottleneck, BOTTLENECK_WIDTH, "parallel")
    return {
        "adapter, compressed": compressed,
        "adapter, direct LoRA": direct,
        "adapter, bottleneck": bottleneck,
    }


def _fine_tuning(base: BaseModel, body: Encoder | UpperLayers, inputs: Tensor, mask: Tensor) -> Step:
    """Return a step of ``body`` with a head, towards random labels; ``inputs`` (B, T) or (B, T, D)."""
    model = TaskModel(body, HeadModule(base.config.width, _LABELS)).train()
    optimizer = make_adamw([((p for p in model.parameters() if p.requires_grad), 1e-4)])
    targets = torch.arange(len(mask)) % _LABELS  # (B,)

    def step(precision: StepPrecision) -> None:
        optimizer_step(cross_entropy(model(inputs, mask, precision), targets), model, optimizer)

    return step


def _timed(name: str, step: Step, mask: Tensor, rounds: int) -> StepTiming:
    """Take one step in each precision to warm up, and then one in each a round, in changing order."""
    for precision in _PRECISIONS:
        step(precision)
    taken: dict[str, list[float]] = {precision.name: [] for precision in _PRECISIONS}
    for turn in range(rounds):
        order: Sequence[StepPrecision] = _PRECISIONS if turn % 2 else _PRECISIONS[::-1]
        for precision in order:
            started = time.process_time()
            step(precision)
            taken[precision.name].append(time.process_time() - started)
    exact, fast = taken[FLOAT32.name], taken[BFLOAT16.name]
    ratio = statistics.median(b / a for a, b in zip(exact, fast, strict=True))
    return StepTiming(
        name, len(mask), int(mask.sum()), statistics.median(exact), statistics.median(fast), ratio
    )
