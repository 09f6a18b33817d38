"""The numbered examples: the commands of each README are run as they are written, in order, on one system."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from embedded import Embedded, wait_for

from hmi_api.resources.manifests import parse_manifest
from hmi_cli.manifests import load

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
NUMBERED = sorted(folder.name for folder in EXAMPLES.glob("[0-9]*"))
READY_SECONDS = 240.0
COMMAND_SECONDS = 240.0
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def hmi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A running system without resources."""
    embedded = Embedded(tmp_path_factory.mktemp("examples") / "home")
    embedded.start()
    try:
        yield embedded
        assert embedded.stop() == 0, embedded.log()
    finally:
        if embedded.process is not None and embedded.process.poll() is None:
            embedded.kill()


def commands(example: str) -> list[str]:
    """Return the lines of the README's ``sh`` blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (EXAMPLES / example / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(hmi: Embedded, line: str) -> str:
    """Run a command with ``.venv/bin`` on the path. Stop one that watches when nothing changes any more."""
    if line.endswith(" -w"):
        namespace = shlex.split(line)[shlex.split(line).index("-n") + 1]
        wait_for(lambda: settled(hmi, namespace), READY_SECONDS, hmi.log)
        line = f"timeout 5 {line} || [ $? = 124 ]"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HMI_HOME": str(hmi.home),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}{hmi.log()}"
    return done.stdout


def settled(hmi: Embedded, namespace: str) -> bool:
    """Say whether the operator has finished with the latest generation of everything in a namespace."""
    return all(
        (item.get("status") or {}).get("observedGeneration") == item["metadata"]["generation"]
        and condition(item, "Reconciling")["status"] == "False"
        for item in hmi.json("get", "all", "-n", namespace)["items"]
    )


def condition(item: dict[str, Any], type_: str) -> dict[str, str]:
    """Return a condition of a resource."""
    found = [entry for entry in item["status"]["conditions"] if entry["type"] == type_]
    assert found, item
    entry: dict[str, str] = found[0]
    return entry


def run_all(hmi: Embedded, example: str) -> dict[str, str]:
    """Run an example's commands; return what each printed."""
    return {line: run(hmi, line) for line in commands(example)}


def adapter(hmi: Embedded, name: str) -> dict[str, Any]:
    """Return a TaskAdapter of the examples."""
    found: dict[str, Any] = hmi.json("get", f"ta/{name}", "-n", "learn")
    return found


def output_of(printed: dict[str, str], beginning: str) -> str:
    """Return what the one command with this beginning printed."""
    (found,) = [text for line, text in printed.items() if line.startswith(beginning)]
    return found


def test_every_example_is_listed_and_has_valid_manifests() -> None:
    listed = re.findall(r"^\| \[([0-9][^\]]*)\]\(\1/README.md\)", (EXAMPLES / "README.md").read_text(), re.M)
    assert listed == NUMBERED
    for file in EXAMPLES.glob("[0-9]*/*.yaml"):
        assert [parse_manifest(found.body) for found in load([str(file)], recursive=False)]


def test_01_classify(hmi: Embedded) -> None:
    printed = run_all(hmi, "01-classify")
    assert condition(adapter(hmi, "topic"), "Ready")["status"] == "True"
    answers = output_of(printed, "hmi classify").splitlines()
    assert len(answers) == 3
    assert answers[1].split()[:2] == ["topic", "room-fault"]


def test_02_tokens(hmi: Embedded) -> None:
    printed = run_all(hmi, "02-tokens")
    assert condition(adapter(hmi, "details"), "Ready")["status"] == "True"
    assert "NAME: Mrs Lindqvist" in output_of(printed, "hmi classify")


def test_03_import_peft(hmi: Embedded) -> None:
    printed = run_all(hmi, "03-import-peft")
    assert condition(adapter(hmi, "tone"), "Ready")["status"] == "True"
    assert "praise" in output_of(printed, "hmi classify")


def test_04_fan_out(hmi: Embedded) -> None:
    printed = run_all(hmi, "04-fan-out")
    models = [line.split()[0] for line in output_of(printed, "hmi classify").splitlines()[1:]]
    assert models == ["topic", "details"]


def test_05_domain_tree(hmi: Embedded) -> None:
    printed = run_all(hmi, "05-domain-tree")
    child = hmi.json("get", "dom/workshop", "-n", "learn")
    assert condition(child, "Ready")["status"] == "True"
    assert child["status"]["entries"] > 0
    assert "hotel" in output_of(printed, "hmi describe")


def test_06_retrain(hmi: Embedded) -> None:
    run_all(hmi, "06-retrain")
    assert adapter(hmi, "topic")["status"]["version"] == 2
    assert condition(adapter(hmi, "topic"), "Loaded")["status"] == "True"


def test_07_gate_and_roll_back(hmi: Embedded) -> None:
    missed, earlier = commands("07-gate-and-roll-back")[:3], commands("07-gate-and-roll-back")[3:]
    for line in missed:
        run(hmi, line)
    topic = adapter(hmi, "topic")
    assert topic["status"]["version"] == 2
    assert condition(topic, "Stalled")["status"] == "True"
    assert condition(topic, "Ready")["status"] == "True"
    trained = seconds_trained(hmi)
    for line in earlier:
        run(hmi, line)
    topic = adapter(hmi, "topic")
    assert topic["status"]["version"] == 4  # the version that missed its gate has number 3
    assert condition(topic, "Stalled")["status"] == "False"
    assert seconds_trained(hmi) == trained


def seconds_trained(hmi: Embedded) -> list[str]:
    """Return the lines of usage for training."""
    return [line for line in hmi.hmi("usage", "learn").stdout.splitlines() if "training_seconds" in line]


def test_08_usage_and_bill(hmi: Embedded) -> None:
    printed = run_all(hmi, "08-usage-and-bill")
    assert "topic" in output_of(printed, "hmi usage")
    assert "rows" in output_of(printed, "hmi bill")
