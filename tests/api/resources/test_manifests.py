"""Manifests are accepted and refused as by kubectl, and errors say what to correct."""

import time
from pathlib import Path

import pytest

from hmi_api.errors import InvalidInput
from hmi_api.resources.common import dump
from hmi_api.resources.domain import Domain
from hmi_api.resources.manifests import Manifest, parse_manifest
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_api.resources.yaml_reader import read_documents

EXAMPLES = Path(__file__).parents[3] / "examples" / "demo"
HEAD = "apiVersion: hmi.dev/v1alpha1\nkind: Domain\nmetadata: {name: hotel}\n"
GOOD = HEAD + "spec:\n  baseModel: {uri: wheel://m}\n  corpus: [{uri: c.txt}]\n"
ADAPTER = (
    "apiVersion: hmi.dev/v1alpha1\nkind: TaskAdapter\nmetadata: {name: topic}\n"
    "spec:\n  domainRef: {name: hotel}\n  task: {type: SequenceClassification}\n"
)


def parsed(text: str) -> list[Manifest]:
    return [parse_manifest(document) for document in read_documents(text.encode())]


def complaint(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parsed(text)
    return caught.value.message


RESOURCE_FILES = [file for file in sorted(EXAMPLES.rglob("*.yaml")) if file.name != "kustomization.yaml"]


@pytest.mark.parametrize("file", RESOURCE_FILES, ids=lambda file: file.name)
def test_the_examples_are_valid(file: Path) -> None:
    assert parsed(file.read_text())


def test_unknown_metadata_is_kept() -> None:
    text = GOOD.replace(
        "{name: hotel}", "{name: hotel, ownerReferences: [{kind: X}], managedFields: [], annotations: {a: b}}"
    )
    (found,) = parsed(text)
    assert found.model_dump(by_alias=True)["metadata"]["ownerReferences"] == [{"kind": "X"}]


def test_a_resource_survives_a_round_trip() -> None:
    for text in (GOOD, ADAPTER + "  data: {train: {uri: t.jsonl}}\n"):
        (found,) = parsed(text)
        assert isinstance(found, Domain | TaskAdapter)
        assert parse_manifest(dump(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1", "this is a list"),
        ("kind: Domain", "apiVersion is missing"),
        ("apiVersion: hmi.dev/v1alpha1", "kind is missing"),
        ("apiVersion: hmi.dev/v1\nkind: Domain", "set apiVersion to hmi.dev/v1alpha1"),
        (HEAD.replace("Domain", "Domian"), "did you mean Domain?"),
        (GOOD + "---\n" + HEAD, "(Domain hotel): spec is missing; add it."),
        (
            GOOD.replace("uri: c.txt", "uri: c.txt, textfield: t"),
            "corpus[0].textfield is not a field; did you mean textField?",
        ),
        (GOOD + "  plot: {on_miss: Backoff}\n", "did you mean onMiss?"),
        (GOOD + "  nonsense: 1\n", "spec.nonsense is not a field; remove it."),
        (GOOD + "  split: 0\n", "spec.split is 0; it must be at least 1."),
        (GOOD + "  plot: {dtype: Float8}\n", 'write "Float16" or "Int8"'),
        (GOOD.replace("name: hotel", "name: Hotel_1"), "lower-case letters"),
        (ADAPTER, "exactly one of data"),
        (ADAPTER + "  data: {train: {uri: t}}\n  source: {uri: s}\n", "exactly one of data"),
        (ADAPTER + "  source: {uri: s}\n  method: {type: Bottleneck, fit: Compressed}\n", "for LoRA only"),
        (GOOD + "  training: {steps: '3'}\n", 'is "3", which is text; write a whole number without quotes.'),
        (GOOD + "  suspend: 'true'\n", 'is "true", which is text; write true or false without quotes.'),
        (GOOD + "  suspend: 1\n", "is 1, which is a number; write true or false."),
        (GOOD + "  training: {steps: 1.5}\n", "is 1.5, which is a number; write a whole number."),
        (GOOD + "  training: []\n", "is [], which is a list; write a map of fields."),
        (
            ADAPTER.replace("Classification}", "Classification, labels: [no, yes]}"),
            'put the word in quotes, as in "no"',
        ),
        (
            ADAPTER.replace("Classification}", "Classification, labels: [1, 2]}"),
            'put it in quotes, as in "1"',
        ),
        (
            ADAPTER.replace("Classification}", "Classification, labels: []}"),
            "spec.task.labels is []; it must have at",
        ),
        (GOOD + "  resources: {requests: {cpu: 0.5}}\n", 'text in quotes: put it in quotes, as in "0.5".'),
        (
            GOOD + "  resources: {requests: {cpu: much}}\n",
            "spec.resources.requests: an amount is a whole number, or",
        ),
        (
            GOOD + "  resources: {requests: {cpu: -1}}\n",
            "spec.resources.requests: an amount is a whole number, or",
        ),
        (GOOD + "  resources: {requests: {gpu: 1}}\n", "a device such as nvidia.com/gpu"),
        (
            GOOD + "  resources: {requests: {memory: 2Gi}, limits: {memory: 1500M}}\n",
            "spec.resources.requests: no request may be above the limit",
        ),
        (GOOD + "  sharing: {namespaces: ['team-*']}\n", "patterns such as team-* match nothing"),
        (
            GOOD + "  plot: {refresh: {schedule: hourly}}\n",
            'five fields (minute, hour, day, month, weekday) as in "0 3',
        ),
        (
            GOOD.replace("wheel://m", "s3://bucket/m"),
            "spec.baseModel.uri: a base model is a local folder, hf://",
        ),
        (
            GOOD.replace("name: hotel}", "name: hotel, lables: {}}"),
            "metadata.lables is not a field; did you mean labels?",
        ),
        (
            GOOD.replace("name: hotel}", "name: hotel, labels: {a: 1}}"),
            "metadata.labels.a is 1, which is a number; write",
        ),
        (
            GOOD.replace("name: hotel}", "name: hotel, labels: {a: x y}}"),
            'metadata.labels.a is "x y"; a label has at',
        ),
        (GOOD.replace("name: hotel}", "name: hotel, labels: {a b: x}}"), 'metadata.labels has the key "a b"'),
    ],
)
def test_an_error_names_the_field_and_the_remedy(text: str, words: str) -> None:
    assert words in complaint(text)


def test_many_faults_are_counted_not_listed() -> None:
    extras = "".join(f"  wrong{number}: 1\n" for number in range(20))
    assert "and 15 more." in complaint(GOOD + extras)


def test_numbers_are_quantities_as_in_a_pod() -> None:
    (found,) = parsed(GOOD + "  resources: {requests: {cpu: 2, memory: 2Gi}, limits: {cpu: 2.0}}\n")
    assert isinstance(found, Domain)
    assert found.spec.resources.requests == {"cpu": 2, "memory": "2Gi"}
    assert dump(found)["spec"]["resources"]["limits"] == {"cpu": 2}


def test_null_fields_are_absent() -> None:
    (found,) = parsed(GOOD + "  training: {steps: null}\n  split: null\n  plot: null\n")
    assert found == parsed(GOOD)[0]


@pytest.mark.parametrize("schedule", ["0 3 * * *", "*/15 0-6,22 1,15 JAN-mar Mon", "5/10  * * * 7", "@daily"])
def test_cron_schedules_are_accepted(schedule: str) -> None:
    (found,) = parsed(GOOD + f"  plot: {{refresh: {{schedule: '{schedule}'}}}}\n")
    assert isinstance(found, Domain)
    assert found.spec.plot.refresh.schedule == schedule


@pytest.mark.parametrize(
    "schedule", ["", "* * * *", "60 * * * *", "* 24 * * *", "0 0 0 * *", "@never", "* * * * * *"]
)
def test_invalid_cron_schedules_are_refused(schedule: str) -> None:
    assert "five fields" in complaint(GOOD + f"  plot: {{refresh: {{schedule: '{schedule}'}}}}\n")


def test_many_faults_are_reported_quickly() -> None:
    corpus = [{"uri": "x", f"unknown{number}": 1} for number in range(20_000)]
    body = read_documents(GOOD.encode())[0]
    body["spec"]["corpus"] = corpus
    begun = time.monotonic()
    with pytest.raises(InvalidInput, match="and 19996 more"):
        parse_manifest(body)
    assert time.monotonic() - begun < 20


def test_long_values_are_cut_in_messages() -> None:
    long = "x" * 1_000_000
    body = read_documents(GOOD.encode())[0]
    for spec in ({**body["spec"], long: 1}, {**body["spec"], "suspend": long}):
        with pytest.raises(InvalidInput) as caught:
            parse_manifest({**body, "spec": spec})
        assert len(caught.value.message) < 500
    with pytest.raises(InvalidInput) as caught:
        parse_manifest({**body, "metadata": {"name": long}})
    assert len(caught.value.message) < 500
