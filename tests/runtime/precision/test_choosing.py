"""A runtime's precision choice: measured, recorded for its pool, and taken by other runtimes."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from support_encoders import POST_NORM, random_encoder
from torch import Tensor

from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.precision import PrecisionChoice, PrecisionKey, PrecisionSetting
from hmi_runtime.adapters.executor import UpperExecutor, trial_executor
from hmi_runtime.adapters.kernels import FLOAT32, Kernel, available_kernels
from hmi_runtime.adapters.slot_pool import SlotPool
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.precision.chooser import FrozenLayers, KernelChooser, select_kernels, summary
from hmi_runtime.precision.measurement import Trial, compare, reference_states, time_kernels
from hmi_runtime.precision.records import ChoiceFile
from hmi_runtime.precision.sample import Sample

CPU = torch.device("cpu")
SPLIT = 1


REFERENCE, BFLOAT16, INT8 = FLOAT32, Kernel("bfloat16", "onednn"), Kernel("int8", "onednn")


def trial_with(*wrong: Kernel) -> Trial:
    """Return a way to make executors, of which those of ``wrong`` have noise in their weights."""

    def trial(upper: UpperLayers, kernel: Kernel, _: Tensor) -> UpperExecutor:
        if kernel in wrong:
            upper = copy.deepcopy(upper)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in upper.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std())
        return trial_executor(upper, FLOAT32)

    return trial


class Pool:
    """The records of a pool, in memory."""

    def __init__(self) -> None:
        self.choices: dict[str, PrecisionChoice] = {}
        self.away = False

    def read(self, key: PrecisionKey) -> PrecisionChoice | None:
        if self.away:
            raise NotReady("ControlPlaneUnavailable", "It is away.")
        return self.choices.get(key.model_dump_json())

    def record(self, key: PrecisionKey, proposal: PrecisionChoice) -> PrecisionChoice:
        self.read(key)
        return self.choices.setdefault(key.model_dump_json(), proposal)


class Runtime:
    """A chooser with candidates and times of the test's own."""

    def __init__(self, folder: Path, pool: Pool | None, **seconds: float) -> None:
        self.folder, self.pool, self.seconds = folder, pool, seconds
        self.kernels = [REFERENCE, BFLOAT16, INT8]
        self.wrong: tuple[Kernel, ...] = ()
        self.requested: PrecisionSetting = "auto"
        self.runtime_pool, self.processor = "cpu", "vendor avx2 torch-2"
        self.measured = 0

    def choose(self) -> tuple[str, str]:
        """Load the base model; return the precision, and where it is from."""
        chooser = KernelChooser(
            device=CPU,
            requested=self.requested,
            pool=self.runtime_pool,
            processor=self.processor,
            records=self.pool,
            file=ChoiceFile(self.folder / "precision.json"),
            kernels=lambda device: self.kernels,
            trial=trial_with(*self.wrong),
            measure_seconds=self._measure,
        )
        _, report = chooser.choose(layers())
        self.report = report
        return report.choice.precision, report.source

    def _measure(self, kernels: Sequence[Kernel], encoder: Encoder, hidden: Tensor) -> list[float]:
        self.measured += 1
        return [self.seconds[one.precision] for one in kernels]


def layers() -> FrozenLayers:
    encoder = random_encoder(POST_NORM)
    upper = UpperLayers(encoder, SPLIT)
    hidden = torch.randn(4, 8, encoder.config.width, generator=torch.Generator().manual_seed(1))
    return FrozenLayers(
        base_uri="file:///base",
        base_digest="sha256:base",
        encoder=encoder,
        upper=upper,
        calibration=lambda: hidden,
        sample=lambda: Sample(hidden, "windows of a/b@1"),
    )


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_the_fastest_accurate_candidate_is_taken_and_reported(tmp_path: Path, pool: Pool) -> None:
    runtime = Runtime(tmp_path, pool, float32=0.03, bfloat16=0.02, int8=0.01)
    runtime.wrong = (INT8,)
    assert runtime.choose() == ("bfloat16", "Measured")
    assert runtime.report.recorded
    by_name = {one.precision: one for one in runtime.report.choice.candidates}
    assert by_name["int8"].milliseconds == pytest.approx(10)
    assert by_name["int8"].refused.startswith("cosine")
    assert by_name["int8"].cosine is not None
    assert by_name["int8"].cosine < 0.995
    assert (by_name["bfloat16"].refused, by_name["bfloat16"].agreement) == ("", 1.0)
    assert by_name["float32"].cosine is None  # slower than the one taken: not compared
    line = summary(runtime.report)
    for part in ("upper layers in bfloat16/onednn", "int8/onednn 10.00 ms", "refused: cosine", "a/b@1"):
        assert part in line
    assert "\n" not in line


def test_a_slow_candidate_is_not_taken(tmp_path: Path, pool: Pool) -> None:
    assert Runtime(tmp_path, pool, float32=0.01, bfloat16=0.02, int8=0.03).choose()[0] == "float32"


def test_a_restart_and_another_replica_take_what_is_recorded(tmp_path: Path, pool: Pool) -> None:
    first = Runtime(tmp_path / "first", pool, float32=0.03, bfloat16=0.02, int8=0.01)
    assert first.choose() == ("int8", "Measured")
    restarted = Runtime(tmp_path / "first", pool, float32=0.01, bfloat16=0.02, int8=0.03)
    replica = Runtime(tmp_path / "second", pool, float32=0.01, bfloat16=0.02, int8=0.03)
    for other in (restarted, replica):
        assert other.choose() == ("int8", "Pool")
        assert other.measured == 0
        assert other.report.choice == first.report.choice


@pytest.mark.parametrize("what", ["processor", "runtime_pool"])
def test_a_choice_of_another_processor_or_pool_is_not_taken(what: str, tmp_path: Path, pool: Pool) -> None:
    assert Runtime(tmp_path, pool, float32=0.03, bfloat16=0.02, int8=0.01).choose()[0] == "int8"
    other = Runtime(tmp_path, pool, float32=0.01, bfloat16=0.02, int8=0.03)
    setattr(other, what, "another")
    assert other.choose() == ("float32", "Measured")
    assert len(pool.choices) == 2


def test_the_first_of_two_that_start_at_once_decides(tmp_path: Path, pool: Pool) -> None:
    late = Runtime(tmp_path / "late", pool, float32=0.01, bfloat16=0.02, int8=0.03)
    early = Runtime(tmp_path / "early", pool, float32=0.03, bfloat16=0.02, int8=0.01)
    measure = late._measure

    def measure_while_the_other_starts(*arguments: object) -> list[float]:
        early.choose()
        return measure(*arguments)  # type: ignore[arg-type]

    late._measure = measure_while_the_other_starts  # type: ignore[assignment, method-assign]
    assert late.choose() == ("int8", "Pool")
    assert late.report.choice == early.report.choice


def test_without_a_control_plane_the_file_is_followed(tmp_path: Path, pool: Pool) -> None:
    seconds = {"float32": 0.03, "bfloat16": 0.02, "int8": 0.01}
    assert Runtime(tmp_path, pool, **seconds).choose() == ("int8", "Measured")
    pool.away = True
    again = Runtime(tmp_path, pool, float32=0.01, bfloat16=0.02, int8=0.03)
    assert again.choose() == ("int8", "Cache")
    assert not again.report.recorded
    new = Runtime(tmp_path / "new", pool, float32=0.01, bfloat16=0.02, int8=0.03)
    assert new.choose() == ("float32", "Measured")
    assert not new.report.recorded


def test_the_pool_s_record_goes_before_the_file(tmp_path: Path, pool: Pool) -> None:
    pool.away = True
    runtime = Runtime(tmp_path, pool, float32=0.01, bfloat16=0.02, int8=0.03)
    assert runtime.choose() == ("float32", "Measured")
    pool.away = False
    assert Runtime(tmp_path / "b", pool, float32=0.03, bfloat16=0.02, int8=0.01).choose()[0] == "int8"
    assert runtime.choose() == ("int8", "Pool")


def test_a_record_that_cannot_run_here_is_left_alone(tmp_path: Path, pool: Pool) -> None:
    assert Runtime(tmp_path, pool, float32=0.03, bfloat16=0.02, int8=0.01).choose()[0] == "int8"
    older = Runtime(tmp_path / "older", pool, float32=0.02, bfloat16=0.01)
    older.kernels = older.kernels[:2]
    assert older.choose() == ("bfloat16", "Measured")
    assert not older.report.recorded
    assert [choice.precision for choice in pool.choices.values()] == ["int8"]


def test_a_precision_that_is_asked_for_is_taken_though_it_misses_the_bound(
    tmp_path: Path, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Runtime(tmp_path, pool, int8=0.02)
    runtime.kernels = [REFERENCE, INT8, Kernel("int8", "torch")]
    runtime.wrong = (INT8, Kernel("int8", "torch"))
    runtime.requested = "int8"
    assert runtime.choose() == ("int8", "Measured")
    assert "misses the bound" in caplog.text


def test_an_only_candidate_is_not_measured(tmp_path: Path, pool: Pool) -> None:
    runtime = Runtime(tmp_path, pool)
    runtime.requested = "float32"
    assert runtime.choose() == ("float32", "Only")
    assert (runtime.measured, pool.choices) == (0, {})


def test_a_precision_that_the_machine_lacks_is_refused_with_advice() -> None:
    with pytest.raises(InvalidInput) as refused:
        select_kernels([REFERENCE, BFLOAT16], "int8")
    assert refused.value.reason == "PrecisionUnsupported"
    assert "it runs float32, bfloat16" in refused.value.message
    assert [one.precision for one in select_kernels([REFERENCE, INT8], "auto")] == [
        "float32",
        "int8",
    ]


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"x": 1}'])
def test_a_damaged_file_is_ignored_and_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / "precision.json").write_text(content)
    runtime = Runtime(tmp_path, None, float32=0.01, bfloat16=0.02, int8=0.03)
    assert runtime.choose() == ("float32", "Measured")
    assert json.loads((tmp_path / "precision.json").read_text())
    assert runtime.choose() == ("float32", "Cache")


# --- measuring --------------------------------------------------------------------------------------


def time_in_steps(seconds: Mapping[Kernel, Sequence[float]]) -> tuple[list[float], list[Kernel]]:
    """Time kernels whose runs take ``seconds`` by a clock of their own; return the times and the order."""
    now, order = [0.0], []
    base = random_encoder(POST_NORM)

    class Slow(UpperExecutor):
        def __init__(self, upper: UpperLayers, kernel: Kernel) -> None:
            super().__init__(upper, SlotPool(upper, 0))
            self.named, self.seconds = kernel, iter(seconds[kernel])

        def run(self, hidden: Tensor, mask: Tensor, slots: Sequence[int]) -> Tensor:
            order.append(self.named)
            now[0] += next(self.seconds)
            return hidden

    def trial(upper: UpperLayers, kernel: Kernel, _: Tensor) -> UpperExecutor:
        assert len(upper.layers) == 1
        return Slow(upper, kernel)

    hidden = torch.randn(2, 4, base.config.width)
    return time_kernels(list(seconds), base, hidden, lambda: now[0], trial), order


def test_the_least_time_counts_and_candidates_take_turns() -> None:
    found, order = time_in_steps({INT8: (5.0, 0.2, 0.1, 0.3), BFLOAT16: (0.01, 0.15, 0.3, 0.2)})
    assert found == pytest.approx([0.1, 0.15])
    # A round that is not counted, and three: then the time is used.
    assert order == [INT8, BFLOAT16] * 4


def test_a_far_slower_candidate_is_timed_in_the_fewest_rounds_only() -> None:
    slow, near, fast = (0.03, 0.05, 0.05, 0.03), [0.019] * 8, [0.01] * 8
    found, order = time_in_steps({FLOAT32: slow, BFLOAT16: near, INT8: fast})
    assert found == pytest.approx([0.03, 0.019, 0.01])
    assert order == [FLOAT32, BFLOAT16, INT8] * 4 + [BFLOAT16, INT8] * 4


def test_the_machine_s_kernels_are_timed_and_accurate_in_float32() -> None:
    taken = layers()
    hidden = taken.sample().hidden
    kernels = available_kernels(CPU)
    seconds = time_kernels(kernels, taken.encoder, hidden)
    assert all(one > 0 for one in seconds)
    reference = reference_states(taken.upper, hidden)
    for kernel in kernels:
        accuracy = compare(trial_executor(taken.upper, kernel, taken.calibration()), hidden, reference)
        if kernel.precision == "float32":
            assert accuracy.cosine > 0.99999
            assert accuracy.agreement == 1.0
        assert accuracy.cosine > 0.9


def test_states_that_are_not_finite_are_refused() -> None:
    taken = layers()
    hidden = taken.sample().hidden
    reference = reference_states(taken.upper, hidden)
    executor = trial_executor(taken.upper, FLOAT32)
    executor.run = lambda *_: torch.full_like(hidden, torch.nan)  # type: ignore[method-assign]
    assert compare(executor, hidden, reference).problem
