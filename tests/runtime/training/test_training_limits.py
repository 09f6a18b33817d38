"""Adapters that no runtime would load are refused before training, with a final failure."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support_runs import Runs, failed, succeeded

from hmi_api.internal.runs import RunFailure
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.training.cli import main

SMALL = AdapterLimits(max_rank=4, max_bottleneck=6, max_labels=2)


def stages(runs: Runs) -> set[str]:
    return {json.loads(line).get("stage") for line in runs.lines.getvalue().splitlines()}


def too_large(runs: Runs, domain: Any, train: Path, limits: AdapterLimits, **spec: Any) -> RunFailure:
    run = runs.adapter_spec(domain, train, **spec)
    runs.lines = io.StringIO()
    failure = failed(runs.do(run, "too-large", limits=limits))
    assert (failure.reason, failure.retryable) == ("AdapterTooLarge", False)
    assert "training" not in stages(runs)
    return failure


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"size": 5}, "rank 5; .* at most 4.*slots.maxRank.*HMI_MAX_RANK"),
        ({"size": 5, "fit": "Direct"}, "rank 5"),
        ({"type": "Bottleneck", "size": 7}, "bottleneck width 7; .* at most 6.*HMI_MAX_BOTTLENECK"),
    ],
)
def test_a_size_larger_than_a_slot_is_refused_before_training(
    runs: Runs, sides: Path, method: dict[str, Any], message: str
) -> None:
    failure = too_large(runs, runs.version(), sides, SMALL, method=method)
    assert re.search(message, failure.message)


def test_more_labels_than_a_slot_has_are_refused_before_training(
    runs: Runs, write_lines: Any, sentences: list[str]
) -> None:
    """The labels are counted in the rows if the task names none."""
    rows = [{"text": text, "label": f"class-{number % 3}"} for number, text in enumerate(sentences)]
    failure = too_large(runs, runs.version(), write_lines("rows.jsonl", rows), SMALL)
    assert "3 labels; the runtimes of this installation serve at most 2" in failure.message
    assert "HMI_MAX_LABELS" in failure.message


@pytest.mark.parametrize(
    ("method", "largest"),
    [({}, 4), ({"fit": "Direct"}, 4), ({"type": "Bottleneck"}, 6)],
    ids=["compressed", "direct", "bottleneck"],
)
def test_a_size_that_the_spec_leaves_open_fits(
    runs: Runs, sides: Path, method: dict[str, Any], largest: int
) -> None:
    run = runs.adapter_spec(runs.version(), sides, method=method)
    result = succeeded(runs.do(run, "fits", limits=SMALL))
    weights = AdapterWeights.load(runs.store.fetch(result.artifacts[0], runs.folder / "cache"))
    assert max(weights.rank, weights.bottleneck_width) == largest


def test_an_import_larger_than_a_slot_is_refused(
    runs: Runs, write_lines: Any, tagged_rows: list[dict[str, Any]]
) -> None:
    domain = runs.version()
    task = {"type": "TokenClassification", "labels": ["O", "B-BIKE", "B-COLOUR"]}
    data = {"train": {"uri": str(write_lines("tags.jsonl", tagged_rows))}}
    spec = runs.adapter_spec(domain, Path(), data=data, task=task, method={"size": 5})
    trained = succeeded(runs.do(spec, "trained"))
    folder = runs.folder / "peft"
    options = ["--artifacts", str(runs.folder / "artifacts"), "--out", str(folder)]
    assert main(["export", "--artifact", trained.artifacts[0].uri, *options]) == 0
    source = {"uri": str(folder)}
    limits = AdapterLimits(max_rank=4)
    failure = too_large(runs, domain, Path(), limits, data=None, source=source, task={"type": task["type"]})
    assert "The adapter has rank 5" in failure.message
    limits = AdapterLimits(max_labels=2)
    failure = too_large(runs, domain, Path(), limits, data=None, source=source, task={"type": task["type"]})
    assert "The adapter has 3 labels" in failure.message


def test_an_import_that_cannot_be_used_is_a_final_failure(
    runs: Runs, write_lines: Any, tagged_rows: list[dict[str, Any]]
) -> None:
    """An invalid pattern, and another base model's name."""
    domain = runs.version()
    data = {"train": {"uri": str(write_lines("tags.jsonl", tagged_rows))}}
    task = {"type": "TokenClassification"}
    trained = succeeded(runs.do(runs.adapter_spec(domain, Path(), data=data, task=task), "trained"))
    folder = runs.folder / "peft"
    options = ["--artifacts", str(runs.folder / "artifacts"), "--out", str(folder)]
    assert main(["export", "--artifact", trained.artifacts[0].uri, *options]) == 0
    config = folder / "adapter_config.json"
    written = json.loads(config.read_text())

    def outcome(name: str, source: dict[str, str], **changes: Any) -> Any:
        config.write_text(json.dumps({**written, **changes}))
        spec = runs.adapter_spec(domain, Path(), data=None, source={"uri": str(folder), **source}, task=task)
        return runs.do(spec, name)

    for number, (changes, reason) in enumerate(
        [
            ({"alpha_pattern": {"(": 4}}, "AdapterPattern"),
            ({"base_model_name_or_path": "somebody/other"}, "AdapterForAnotherBase"),
        ]
    ):
        failure = failed(outcome(f"refused-{number}", {}, **changes))
        assert (failure.reason, failure.retryable) == (reason, False)
    named = {"baseModelName": "somebody/other"}
    assert succeeded(outcome("named", named, base_model_name_or_path="somebody/other")).artifacts
