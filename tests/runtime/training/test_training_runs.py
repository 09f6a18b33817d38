"""Whole runs: results, failures with their reasons, and that a kill at any moment changes nothing."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support_runs import Runs, failed, succeeded

from hmi_api.artifacts import ArtifactKind
from hmi_api.internal.runs import RunFailure, RunProgress, RunResult, RunSpec
from hmi_api.tag_schemes import TagScheme
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.tables.table import PlotTable
from hmi_runtime.training.cli import main
from hmi_runtime.training.precision import PRECISION_METRIC, multiplies_bfloat16, step_precision
from hmi_runtime.training.run import execute_run
from hmi_runtime.training.run_context import RunContext


def test_a_domain_run_publishes_layers_and_their_table(runs: Runs) -> None:
    result = succeeded(runs.do(runs.domain_spec(), "domain"))
    layers, table = result.artifacts
    assert (layers.kind, table.kind) == (ArtifactKind.LAYERS, ArtifactKind.TABLE)
    assert runs.store.manifest(table).layers_digest == layers.digest == result.layers_digest
    loaded = PlotTable.load(runs.store.fetch(table, runs.folder / "cache"))
    assert loaded.entries == result.entries
    assert result.split == 2
    assert result.coverage is not None
    assert 0 < result.coverage < 1
    assert {"distillation_loss", "cosine_at_output"} <= set(result.metrics)
    events = [json.loads(line) for line in runs.lines.getvalue().splitlines()]
    assert [event["step"] for event in events if event.get("stage") == "training"] == [1, 2, 3, 4, 5, 6]
    assert events[-1]["event"] == "complete"


def test_a_finished_run_is_reported_again_without_work(runs: Runs) -> None:
    first = succeeded(runs.do(runs.domain_spec(), "domain"))
    runs.corpus.unlink()
    runs.lines.truncate(0)
    assert runs.do(runs.domain_spec(), "domain") == first
    assert '"progress"' not in runs.lines.getvalue()


def test_a_work_folder_belongs_to_one_run(runs: Runs) -> None:
    succeeded(runs.do(runs.domain_spec(), "domain"))
    other = runs.domain_spec(bridge={"heads": 0})
    assert failed(runs.do(other, "domain")).reason == "WorkDirInUse"


def test_a_child_without_steps_keeps_its_parents_layers(runs: Runs, write_lines: Any) -> None:
    parent = runs.version()
    runs.corpus = write_lines("more.jsonl", [{"text": "the blue pump creaks on my hill road again"}])
    child = runs.version("child", parent=parent, training={"steps": 0})
    assert child.layers == parent.layers
    assert child.tables[1:] == parent.tables
    own = PlotTable.load(runs.store.fetch(child.tables[0], runs.folder / "cache"))
    assert own.layers_digest == parent.layers.digest
    assert 0 < own.entries <= 10


def test_a_child_with_steps_starts_from_its_parents_layers(runs: Runs) -> None:
    parent = runs.version()
    child = runs.version("child", parent=parent, training={"steps": 1, "batchSize": 8, "maxLength": 16})
    assert child.layers != parent.layers
    assert parent.coverage < 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"corpus": [{"uri": "nowhere.jsonl"}]}, "CorpusNotFound"),
        ({"split": 4}, "SplitTooDeep"),
        ({"baseModel": {"uri": "nowhere"}}, "BaseModelNotFound"),
    ],
)
def test_errors_of_the_user_fail_with_their_reason(more: dict[str, Any], reason: str, runs: Runs) -> None:
    ended = failed(runs.do(runs.domain_spec(**more), "domain"))
    assert ended.reason == reason
    assert not ended.retryable


@pytest.mark.parametrize("more", [{"split": 1}, {"bridge": {"heads": 4, "headSize": 8}}])
def test_a_parent_that_does_not_fit_is_refused(more: dict[str, Any], runs: Runs) -> None:
    parent = runs.version()
    ended = failed(runs.do(runs.domain_spec(parent, **more), "child"))
    assert ended.reason == "ParentMismatch"


def test_unexpected_errors_are_retryable_and_report_no_traceback(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    (runs.folder / "domain" / "corpus").mkdir(parents=True)
    (runs.folder / "domain" / "corpus" / "tokens.u32").mkdir()
    ended = failed(runs.do(runs.domain_spec(), "domain"))
    assert (ended.reason, ended.retryable) == ("InternalError", True)
    assert "Traceback" not in ended.message
    assert "Traceback" in caplog.text


def test_an_invalid_result_is_a_final_failure(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_domain(*_: Any) -> RunResult:
        return RunResult(artifacts=[], base_digest="sha256:b", metrics={"accuracy": float("nan")})

    monkeypatch.setattr("hmi_runtime.training.run.run_domain", run_domain)
    ended = failed(runs.do(runs.domain_spec(), "domain"))
    assert (ended.reason, ended.retryable) == ("ResultInvalid", False)
    assert "metrics.accuracy" in ended.message


@pytest.mark.parametrize("on_miss", ["Compute", "Backoff"])
def test_an_adapter_run_publishes_an_adapter(on_miss: str, runs: Runs, sides: Path) -> None:
    domain = runs.version(plot={"minFrequency": 1, "onMiss": on_miss})
    gate = {"metric": "macro_f1", "minimum": 0.2}
    result = succeeded(runs.do(runs.adapter_spec(domain, sides, gate=gate), "adapter"))
    assert result.gate_passed
    assert result.labels == ["front", "rear"]
    assert result.layers_digest == domain.layers.digest
    weights = AdapterWeights.load(runs.store.fetch(result.artifacts[0], runs.folder / "cache"))
    assert weights.layers_digest == domain.layers.digest
    assert min(weights.layers) >= domain.split
    assert {"accuracy", "macro_f1", "validation", "rank"} <= set(result.metrics)


def test_a_token_task_run(runs: Runs, write_lines: Any, tagged_rows: list[dict[str, Any]]) -> None:
    data = {"train": {"uri": str(write_lines("tags.jsonl", tagged_rows))}}
    task = {"type": "TokenClassification"}
    result = succeeded(runs.do(runs.adapter_spec(runs.version(), Path(), data=data, task=task), "adapter"))
    assert result.labels == ["O", "B-BIKE", "B-COLOUR"]
    assert "entity_f1" in result.metrics


def test_a_run_reports_what_it_read(
    runs: Runs, write_lines: Any, tagged_rows: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = write_lines("train.jsonl", tagged_rows).parent / "tags"
    folder.mkdir()
    shutil.copy(folder.parent / "train.jsonl", folder / "train.jsonl")
    shutil.copy(folder.parent / "train.jsonl", folder / "test.jsonl")
    (folder / "README.md").write_text("# About\n")
    data = {"train": {"uri": str(folder)}, "evaluation": {"uri": str(folder)}}
    spec = runs.adapter_spec(runs.version(), Path(), data=data, task={"type": "TokenClassification"})
    result = succeeded(runs.do(spec, "adapter"))
    train, evaluation = result.data
    assert (train.use, train.rows, train.files) == ("train", len(tagged_rows), ["train.jsonl"])
    assert train.skipped == ["README.md (about the data)", "test.jsonl (named for test)"]
    assert train.held_out
    assert set(train.labels) == {"O", "B-BIKE", "B-COLOUR"}
    assert (evaluation.use, evaluation.files) == ("evaluation", ["test.jsonl"])
    assert f"read {folder} {train.sentence()}" in caplog.messages
    weights = AdapterWeights.load(runs.store.fetch(result.artifacts[0], runs.folder / "cache"))
    assert weights.entity_scheme is TagScheme.IOB2


@pytest.mark.parametrize("name", ["a.zip", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.lzma"])
def test_damaged_data_is_a_final_failure(name: str, runs: Runs) -> None:
    path = runs.folder / name
    path.write_bytes(b"no such thing\n" * 9)
    for ended in (
        failed(runs.do(runs.adapter_spec(runs.version(), path), "adapter")),
        failed(runs.do(runs.domain_spec(corpus=[{"uri": str(path)}]), "damaged")),
    ):
        assert (ended.reason, ended.retryable) == ("CorpusNotText", False)


def test_a_failed_run_reports_what_it_read(runs: Runs, write_lines: Any) -> None:
    train = write_lines("train.jsonl", [{"text": f"text {n}", "label": "x"} for n in range(3)])
    ended = failed(runs.do(runs.adapter_spec(runs.version(), train), "adapter"))
    assert ended.reason == "OneLabelOnly"
    assert [(read.rows, read.labels) for read in ended.data] == [(3, {"x": 3})]


def test_a_resumed_domain_run_reports_what_it_read(runs: Runs) -> None:
    result = succeeded(runs.do(runs.domain_spec(), "domain"))
    (runs.folder / "domain" / "result.json").unlink()
    again = succeeded(runs.do(runs.domain_spec(), "domain"))
    assert result.data
    assert result.data == again.data
    assert result.data[0].use == "corpus"


def test_a_run_that_misses_its_gate_has_a_result(runs: Runs, sides: Path, write_lines: Any) -> None:
    evaluation = write_lines("test.jsonl", [{"text": "the chain is on", "label": "rear"}] * 3)
    spec = runs.adapter_spec(
        runs.version(),
        sides,
        task={"type": "SequenceClassification", "labels": ["rear", "front"]},
        data={"train": {"uri": str(sides)}, "evaluation": {"uri": str(evaluation)}},
        gate={"metric": "macro_f1", "minimum": 1.0},
        training={"epochs": 1, "learningRate": 1e-9, "maxLength": 16},
        method={"fit": "Direct", "size": 2},
    )
    result = succeeded(runs.do(spec, "adapter"))
    assert result.labels == ["rear", "front"]
    assert len(result.artifacts) == 1
    assert result.gate_passed == (result.metrics["macro_f1"] == 1.0)
    if not result.gate_passed:
        assert "3 held-out rows" in result.gate_message


def test_a_teacher_labels_unlabelled_texts(runs: Runs, sides: Path, write_lines: Any) -> None:
    others = write_lines(
        "others.jsonl", [{"text": f"the chain is on {n}"} for n in ("front", "rear", "hill")]
    )
    spec = runs.adapter_spec(
        runs.version(),
        sides,
        data={"train": {"uri": str(sides)}, "unlabelled": {"uri": str(others)}},
        training={
            "epochs": 1,
            "maxLength": 16,
            "teacher": {"epochs": 1, "learningRate": 1e-3, "unlabelledRows": 2},
        },
    )
    assert len(succeeded(runs.do(spec, "adapter")).artifacts) == 1
    said = [json.loads(line) for line in runs.lines.getvalue().splitlines()]
    assert {"teaching", "training"} <= {one.get("stage") for one in said}


@pytest.mark.parametrize(
    ("rows", "more", "reason"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], {}, "OneLabelOnly"),
        ([{"text": "a", "label": "x"}, {"text": "a", "label": "y"}], {}, "TooFewRows"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "fa\0ult"}], {}, "LabelMalformed"),
        ([{"text": "a", "mark": "x"}], {}, "FieldMissing"),
        ([], {"gate": {"metric": "entity_f1", "minimum": 0.5}}, "GateMetricMismatch"),
        ([], {"task": {"type": "TextGeneration"}}, "TaskUnsupported"),
        (
            [],
            {"data": None, "source": {"uri": "x"}, "gate": {"metric": "accuracy", "minimum": 0.5}},
            "GateNeedsData",
        ),
        ([], {"data": None, "source": {"uri": "nowhere"}}, "SourceNotFound"),
    ],
)
def test_adapter_runs_fail_with_their_reason(
    rows: list[dict[str, Any]], more: dict[str, Any], reason: str, runs: Runs, write_lines: Any
) -> None:
    train = write_lines("train.jsonl", rows)
    assert failed(runs.do(runs.adapter_spec(runs.version(), train, **more), "adapter")).reason == reason


def test_a_domain_missing_from_the_store_is_retryable(runs: Runs, sides: Path) -> None:
    domain = runs.version()
    runs.store.delete(domain.layers)
    ended = failed(runs.do(runs.adapter_spec(domain, sides), "adapter"))
    assert (ended.reason, ended.retryable) == ("ArtifactMissing", True)


@pytest.mark.parametrize(("kind", "killed_at"), [("domain", 3), ("adapter", 5)])
def test_a_killed_program_resumes_to_the_same_digests(
    kind: str, killed_at: int, runs: Runs, sides: Path
) -> None:
    run: RunSpec = runs.domain_spec()
    if kind == "adapter":
        run = runs.adapter_spec(runs.version(), sides)
    spec = runs.folder / "run.json"
    spec.write_text(run.model_dump_json(by_alias=True))
    whole = succeeded(runs.do(run, "whole", precision=step_precision("auto")))
    child = subprocess.Popen(
        program(kind, spec, runs),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HMI_TRAINING_THREADS": "1", "HMI_TRAINING_CHECKPOINT_SECONDS": "0"},
    )
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if event.get("stage") == "training" and event["step"] >= killed_at:
            child.kill()
    child.stdout.close()
    assert child.wait() != 0
    assert not (runs.folder / "killed" / "result.json").exists()
    assert main(program(kind, spec, runs)[3:]) == 0
    resumed = RunResult.model_validate_json((runs.folder / "killed" / "result.json").read_bytes())
    assert resumed.artifacts == whole.artifacts
    assert resumed.metrics == whole.metrics
    assert resumed.metrics[PRECISION_METRIC] == (16.0 if multiplies_bfloat16() else 32.0)


class Interrupts:
    """Delays a stage's progress report, and then ends the program, as a signal does."""

    def __init__(self, stage: str, seconds: float) -> None:
        self._stage = stage
        self._seconds = seconds

    def progress(self, progress: RunProgress) -> None:
        if progress.stage == self._stage:
            time.sleep(self._seconds)
            raise KeyboardInterrupt

    def complete(self, result: RunResult) -> None:
        raise AssertionError(result)

    def fail(self, failure: RunFailure) -> None:
        raise AssertionError(failure)


@pytest.mark.parametrize("kind", ["domain", "adapter"])
def test_a_runs_seconds_include_all_its_processes(kind: str, runs: Runs, sides: Path) -> None:
    run: RunSpec = runs.domain_spec()
    if kind == "adapter":
        run = runs.adapter_spec(runs.version(), sides)
    for stage in ("corpus", "training"):
        with pytest.raises(KeyboardInterrupt):
            execute_run(run, RunContext(runs.folder / "run", runs.store, Interrupts(stage, 1.5)))
    begun = time.monotonic()
    result = succeeded(runs.do(run, "run"))
    last = time.monotonic() - begun
    assert 3 < result.training_seconds - last < 30
    assert result.artifacts == succeeded(runs.do(run, "at once")).artifacts


def program(kind: str, spec: Path, runs: Runs) -> list[str]:
    options = [
        f"--spec={spec}",
        f"--work-dir={runs.folder / 'killed'}",
        f"--artifacts={runs.folder / 'artifacts'}",
    ]
    return [sys.executable, "-m", "hmi_runtime.training", kind, *options]


def test_an_exported_adapter_can_be_imported(
    runs: Runs, write_lines: Any, tagged_rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    domain = runs.version()
    data = {"train": {"uri": str(write_lines("tags.jsonl", tagged_rows))}}
    task = {"type": "TokenClassification", "labels": ["O", "B-BIKE", "B-COLOUR"]}
    trained = succeeded(runs.do(runs.adapter_spec(domain, Path(), data=data, task=task), "trained"))
    exported = runs.folder / "peft"
    options = ["--artifacts", str(runs.folder / "artifacts"), "--out", str(exported)]
    assert main(["export", "--artifact", trained.artifacts[0].uri, *options]) == 0
    assert main(["export", "--artifact", trained.artifacts[0].digest, *options]) == 0
    assert "whole" in capsys.readouterr().out
    source = {"uri": f"file://{exported}"}
    spec = runs.adapter_spec(domain, Path(), data=None, source=source, task=task)
    imported = succeeded(runs.do(spec, "imported"))
    assert imported.labels == trained.labels
    assert imported.layers_digest == domain.layers.digest
    first, again = (
        AdapterWeights.load(runs.store.fetch(result.artifacts[0], runs.folder / "cache"))
        for result in (trained, imported)
    )
    assert first.rank == again.rank
    assert torch.allclose(first.head.weight, again.head.weight)
    for index, layer in first.layers.items():
        for matrix, lora in layer.lora.items():
            other = again.layers[index].lora[matrix]
            assert torch.allclose(lora.b @ lora.a, other.b @ other.a, atol=1e-6)


def test_a_pickle_is_never_imported(runs: Runs) -> None:
    folder = runs.folder / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    spec = runs.adapter_spec(runs.version(), Path(), data=None, source={"uri": str(folder)})
    assert failed(runs.do(spec, "imported")).reason == "AdapterIsPickle"


@pytest.mark.parametrize("artifact", ["layers/" + "0" * 64, "adapter/" + "0" * 64])
def test_exporting_a_missing_artifact_fails(artifact: str, tmp_path: Path) -> None:
    options = ["--artifacts", str(tmp_path / "artifacts"), "--out", str(tmp_path / "out")]
    assert main(["export", "--artifact", artifact, *options]) != 0
    assert not (tmp_path / "out").exists()


def test_an_invalid_specification_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "domain", "nonsense": 1}')
    with pytest.raises(SystemExit) as caught:
        main(["domain", "--spec", str(tmp_path / "run.json"), "--work-dir", "w", "--artifacts", "a"])
    assert caught.value.code == 2
