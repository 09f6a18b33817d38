"""Reading manifests: what kubectl takes is taken, and what is wrong is said so that it can be mended."""

from pathlib import Path

import pytest

from hmi_api.common import dump
from hmi_api.domain import Domain
from hmi_api.errors import InvalidInput
from hmi_api.manifests import parse_manifest, parse_manifests
from hmi_api.task_adapter import TaskAdapter

EXAMPLES = Path(__file__).parents[2] / "examples"
HEAD = "apiVersion: hmi.dev/v1alpha1\nkind: Domain\nmetadata: {name: hotel}\n"
GOOD = HEAD + "spec:\n  baseModel: {uri: wheel://m}\n  corpus: [{uri: c.txt}]\n"
ADAPTER = (
    "apiVersion: hmi.dev/v1alpha1\nkind: TaskAdapter\nmetadata: {name: topic}\n"
    "spec:\n  domainRef: {name: hotel}\n  task: {type: SequenceClassification}\n"
)


def complaint(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse_manifests(text)
    return caught.value.message


RESOURCE_FILES = [file for file in sorted(EXAMPLES.rglob("*.yaml")) if file.name != "kustomization.yaml"]


@pytest.mark.parametrize("file", RESOURCE_FILES, ids=lambda file: file.name)
def test_the_examples_are_read(file: Path) -> None:
    assert parse_manifests(file.read_text())


def test_documents_lists_and_emptiness() -> None:
    listed = "apiVersion: v1\nkind: List\nitems:\n- " + GOOD.replace("\n", "\n  ")
    assert [type(found) for found in parse_manifests(f"---\n{GOOD}---\n# nothing\n---\n{listed}")] == [
        Domain
    ] * 2


def test_metadata_that_is_not_read_is_kept() -> None:
    text = GOOD.replace(
        "{name: hotel}", "{name: hotel, ownerReferences: [{kind: X}], managedFields: [], annotations: {a: b}}"
    )
    (found,) = parse_manifests(text)
    assert found.model_dump(by_alias=True)["metadata"]["ownerReferences"] == [{"kind": "X"}]


def test_what_was_read_is_written_and_read_again() -> None:
    for text in (GOOD, ADAPTER + "  data: {train: {uri: t.jsonl}}\n"):
        (found,) = parse_manifests(text)
        assert isinstance(found, Domain | TaskAdapter)
        assert parse_manifest(dump(found)) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "line 1"),
        ("- 1", "document 1: this is a list"),
        ("kind: Domain", "apiVersion is missing"),
        ("apiVersion: hmi.dev/v1alpha1", "kind is missing"),
        ("apiVersion: hmi.dev/v1\nkind: Domain", "set apiVersion to hmi.dev/v1alpha1"),
        (HEAD.replace("Domain", "Domian"), "did you mean Domain?"),
        (GOOD + "---\n" + HEAD, "document 2 (Domain hotel): spec is missing; add it."),
        (
            GOOD.replace("uri: c.txt", "uri: c.txt, textfield: t"),
            "corpus[0].textfield is not a field; did",
        ),
        (GOOD + "  plot: {on_miss: Backoff}\n", "did you mean onMiss?"),
        (GOOD + "  nonsense: 1\n", "spec.nonsense is not a field; remove it."),
        (GOOD + "  split: 0\n", "spec.split is 0; input should be greater than or equal to 1."),
        (GOOD + "  plot: {dtype: Float8}\n", "'Float16' or 'Int8'"),
        (GOOD.replace("name: hotel", "name: Hotel_1"), "lower-case letters"),
        (ADAPTER, "exactly one of data"),
        (ADAPTER + "  data: {train: {uri: t}}\n  source: {uri: s}\n", "exactly one of data"),
        (ADAPTER + "  source: {uri: s}\n  method: {type: Bottleneck, fit: Compressed}\n", "for LoRA only"),
    ],
)
def test_a_complaint_says_where_and_what_to_do(text: str, words: str) -> None:
    assert words in complaint(text)


def test_many_faults_are_counted_not_listed() -> None:
    extras = "".join(f"  wrong{number}: 1\n" for number in range(20))
    assert "and 15 more." in complaint(GOOD + extras)


def test_yaml_tags_that_would_run_code_are_refused() -> None:
    with pytest.raises(InvalidInput):
        parse_manifests("!!python/object/apply:os.system ['true']")
