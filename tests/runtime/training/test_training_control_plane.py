"""The training program as Jobs run it: it fetches its run from the control plane and reports there."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_control_plane import TOKEN, FakeControlPlane
from serving import serving

from hmi_api.internal.catalog import DomainRecord
from hmi_api.internal.runs import RunCreate, RunState, RunView
from hmi_runtime.training.cli import main


@dataclass
class Plane:
    """The fake control plane, and the id of the run that the program is started for."""

    fake: FakeControlPlane
    run_id: str

    @property
    def run(self) -> RunView:
        return self.fake.catalog.runs[self.run_id]

    @property
    def reports(self) -> list[str]:
        """The last parts of the paths that the program posted to, in order."""
        return [one.path.rpartition("/")[2] for one in self.fake.requests if one.method == "POST"]


@pytest.fixture
def plane(
    base_folder: Path, sentences: list[str], write_lines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Plane]:
    corpus = write_lines("corpus.jsonl", [{"text": sentence} for sentence in sentences])
    spec = {
        "baseModel": {"uri": str(base_folder)},
        "corpus": [{"uri": str(corpus)}],
        "training": {"steps": 2, "batchSize": 8},
        "bridge": {"heads": 0},
    }
    fake = FakeControlPlane()
    fake.catalog.tenants.add("bikes")
    record = DomainRecord(uid="u", tenant="bikes", generation=1, spec_digest="d", base_uri=str(base_folder))
    fake.catalog.declare(fake.catalog.domains, "bikes/workshop", record)
    run = {"kind": "domain", "namespace": "bikes", "name": "workshop", "spec": spec}
    wanted = {"uid": "u", "tenant": "bikes", "specDigest": "d", "spec": run}
    made = Plane(fake, fake.catalog.create_run(RunCreate.model_validate(wanted)).id)
    with serving(fake.app, lifespan="off") as url:
        environment = {
            "HMI_CONTROL_PLANE_URL": url,
            "HMI_INTERNAL_TOKEN": TOKEN,
            "HMI_RUN_ID": made.run_id,
            "HMI_WORK_DIR": str(tmp_path / "work"),
            "HMI_ARTIFACTS": str(tmp_path / "artifacts"),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_run_is_fetched_executed_and_completed(plane: Plane) -> None:
    assert main(["domain"]) == 0
    assert {one.token for one in plane.fake.requests} == {TOKEN}
    assert (plane.reports[0], plane.reports[-1]) == ("progress", "complete")
    assert plane.run.state is RunState.SUCCEEDED
    current = plane.fake.catalog.domains["bikes/workshop"].current
    assert current is not None
    assert plane.run.result is not None
    assert [current.layers, *current.tables] == plane.run.result.artifacts
    assert len(current.tables) == 1


def test_a_failure_is_reported_with_its_reason(plane: Plane, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("")
    assert main(["domain"]) == 1
    assert plane.reports[-1] == "fail"
    assert plane.run.state is RunState.FAILED
    assert plane.run.failure is not None
    assert plane.run.failure.reason == "CorpusEmpty"


def test_the_result_is_reported_again_until_it_is_accepted(plane: Plane) -> None:
    faults = [
        plane.fake.fail(503, request="POST /runs/.*/complete"),
        plane.fake.drop(request="POST /runs/.*/complete"),
    ]
    assert main(["domain"]) == 0
    assert [fault.left for fault in faults] == [0, 0]
    assert plane.reports[-3:] == ["complete"] * 3
    assert plane.run.state is RunState.SUCCEEDED


def test_a_run_of_another_kind_is_wrong_usage(plane: Plane) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["adapter"])
    assert caught.value.code == 2
    assert plane.reports == []


def test_an_incomplete_environment_is_wrong_usage(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HMI_RUN_ID")
    with pytest.raises(SystemExit) as caught:
        main(["domain"])
    assert caught.value.code == 2
    assert "HMI_RUN_ID" in capsys.readouterr().err
