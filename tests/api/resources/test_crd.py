"""The generated CRDs: valid for the API server, and in step with the types."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hmi_api.resources.crd import crds, main, render
from hmi_api.resources.reference import reference

REPOSITORY = Path(__file__).parents[3]
KINDS = {"domains": ("Domain", "dom"), "taskadapters": ("TaskAdapter", "ta")}


def schema_of(plural: str) -> dict[str, Any]:
    version = crds()[f"{plural}.hmi.dev.yaml"]["spec"]["versions"][0]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def test_the_crd_files_match_the_types() -> None:
    assert main(["--check", str(REPOSITORY / "crds")]) == 0


def test_the_reference_page_matches_the_types() -> None:
    assert (REPOSITORY / "docs" / "resources.md").read_text() == reference()


def test_a_stale_folder_is_reported_and_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(tmp_path)]) == 1
    assert "domains.hmi.dev.yaml" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    assert main([]) == 2


@pytest.mark.parametrize("plural", KINDS)
def test_the_schema_is_structural(plural: str) -> None:
    for path, node in nodes(schema_of(plural)):
        if node.get("x-kubernetes-int-or-string"):  # the one form of anyOf with types that is structural
            continue
        assert "type" in node, path
        assert not {"$ref", "anyOf", "allOf", "oneOf", "title", "const"} & set(node), path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert set(node.get("required", [])) <= set(node.get("properties", {})), path


@pytest.mark.parametrize("plural", KINDS)
def test_every_field_is_described(plural: str) -> None:
    schema = schema_of(plural)
    for part in ("spec", "status"):
        for path, node in nodes(schema["properties"][part], part):
            assert path.endswith("[]") or node.get("description"), path


@pytest.mark.parametrize("plural", KINDS)
def test_names_columns_and_subresource(plural: str) -> None:
    spec = crds()[f"{plural}.hmi.dev.yaml"]["spec"]
    kind, short = KINDS[plural]
    assert (spec["names"]["kind"], spec["names"]["shortNames"]) == (kind, [short])
    version = spec["versions"][0]
    scale = {"specReplicasPath": ".spec.serving.replicas", "statusReplicasPath": ".status.replicas"}
    scaled = {"scale": scale} if plural == "taskadapters" else {}
    assert version["subresources"] == {"status": {}} | scaled
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    own = ["Parent", "Hit Rate"] if plural == "domains" else ["Domain"]
    assert columns == ["Phase", "Ready", *own, "Version", "Progress", "Reason", "Message", "Age"]
    wide = [column["name"] for column in version["additionalPrinterColumns"] if column.get("priority")]
    assert wide == ["Reason", "Message"]
    schema = schema_of(plural)
    assert schema["properties"]["metadata"] == {"type": "object"}
    conditions = schema["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def rules(schema: dict[str, Any]) -> str:
    return " ".join(rule["rule"] for rule in schema.get("x-kubernetes-validations", []))


def test_the_rules_cover_immutable_and_exclusive_fields() -> None:
    domain = schema_of("domains")["properties"]["spec"]
    assert "self.baseModel == oldSelf.baseModel" in rules(domain)
    assert "self.split == oldSelf.split" in rules(domain)
    adapter = schema_of("taskadapters")["properties"]["spec"]
    assert "self.domainRef == oldSelf.domainRef" in rules(adapter)
    assert "self.task.type == oldSelf.task.type" in rules(adapter)
    assert "has(self.data) != has(self.source)" in rules(adapter)
    assert "Bottleneck" in rules(adapter["properties"]["method"])


def test_defaults_enums_and_bounds_are_kept() -> None:
    spec = schema_of("domains")["properties"]["spec"]["properties"]
    assert spec["training"]["default"] == {}
    assert spec["training"]["properties"]["steps"] | {"description": ""} == {
        "type": "integer",
        "format": "int64",
        "default": 400,
        "minimum": 0,
        "maximum": 1_000_000,
        "description": "",
    }
    rate = spec["training"]["properties"]["learningRate"]
    assert (rate["minimum"], rate["exclusiveMinimum"]) == (0, True)
    assert spec["plot"]["properties"]["onMiss"]["enum"] == ["Compute", "Backoff"]
    assert "default" not in spec["parentRef"]


def test_the_yaml_needs_no_anchors() -> None:
    for definition in crds().values():
        text = render(definition)
        assert "&id" not in text
        assert yaml.safe_load(text) == definition
