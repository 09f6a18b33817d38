"""Rows at addresses of a cluster: mounted ConfigMaps and claims, and servers that fail at times."""

import gzip
import io
import logging
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fake_time import install_fake_time

from hmi_api.artifacts import ArtifactKind, ArtifactRef
from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunFailure, RunResult
from hmi_api.resources.common import DataSource
from hmi_api.resources.domain import BaseModelRef, DomainSpec, OnMiss
from hmi_api.resources.task_adapter import TaskAdapterSpec
from hmi_runtime.training import resumable_io as remote
from hmi_runtime.training import source_files
from hmi_runtime.training.data_reader import read_texts
from hmi_runtime.training.mounts import (
    MountPathTranslator,
    TranslatingFormatter,
    TranslatingReporter,
    resolve_mounts,
)
from hmi_runtime.training.peft import download_peft_folder
from hmi_runtime.training.report import LineReporter

ROWS = b"".join(b"row number %d\n" % number for number in range(20_000))


def domain_run(*uris: str) -> DomainRunSpec:
    spec = {"baseModel": {"uri": "wheel://m"}, "corpus": [{"uri": uri} for uri in uris]}
    return DomainRunSpec(namespace="shop", name="hotel", spec=DomainSpec.model_validate(spec))


def adapter_run(**origin: Any) -> AdapterRunSpec:
    spec = {"domainRef": {"name": "hotel"}, "task": {"type": "SequenceClassification"}} | origin
    version = DomainVersionView(
        version=1,
        spec_digest="d",
        base=BaseModelRef(uri="wheel://m"),
        base_digest="b",
        split=3,
        layers=ArtifactRef(kind=ArtifactKind.LAYERS, uri="l", digest="sha256:l", bytes=1),
        tables=[],
        on_miss=OnMiss.COMPUTE,
        entries=1,
        coverage=1.0,
    )
    return AdapterRunSpec(
        namespace="shop", name="topic", spec=TaskAdapterSpec.model_validate(spec), domain=version
    )


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    (tmp_path / "configmaps" / "texts").mkdir(parents=True)
    (tmp_path / "configmaps" / "texts" / "a.txt").write_text("one\n")
    (tmp_path / "claims" / "corpora" / "hotel").mkdir(parents=True)
    (tmp_path / "claims" / "corpora" / "hotel" / "b.txt").write_text("two\n")
    return tmp_path


def test_mounted_addresses_become_paths_and_others_do_not_change(mounts: Path) -> None:
    run = resolve_mounts(domain_run("configmap://texts/a.txt", "pvc://corpora/hotel", "s3://b/c"), mounts)
    assert isinstance(run, DomainRunSpec)
    assert [source.uri for source in run.spec.corpus] == [
        f"{mounts}/configmaps/texts/a.txt",
        f"{mounts}/claims/corpora/hotel",
        "s3://b/c",
    ]
    sources = [source.model_copy(update={"format": "Text"}) for source in run.spec.corpus[:2]]
    assert list(read_texts(sources)) == ["one", "two"]


def test_addresses_of_an_adapters_rows_and_import_become_paths(mounts: Path) -> None:
    data = {
        "train": {"uri": "configmap://texts/a.txt"},
        "evaluation": {"uri": "pvc://corpora/hotel/b.txt"},
        "unlabelled": {"uri": "configmap://texts/a.txt"},
    }
    run = resolve_mounts(adapter_run(data=data, training={"teacher": {}}), mounts)
    assert isinstance(run, AdapterRunSpec)
    assert run.spec.data is not None
    assert run.spec.data.evaluation is not None
    assert run.spec.data.evaluation.uri == f"{mounts}/claims/corpora/hotel/b.txt"
    assert run.spec.data.unlabelled is not None
    assert run.spec.data.unlabelled.uri == f"{mounts}/configmaps/texts/a.txt"
    imported = resolve_mounts(adapter_run(source={"uri": "pvc://corpora/hotel"}), mounts)
    assert isinstance(imported, AdapterRunSpec)
    assert imported.spec.source is not None
    assert imported.spec.source.uri == f"{mounts}/claims/corpora/hotel"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("configmap://texts/absent.txt", "CorpusNotFound"),
        ("pvc://corpora/../../etc/passwd", "AddressMalformed"),
        ("configmap:///a.txt", "AddressMalformed"),
    ],
)
def test_addresses_without_a_file_are_refused(mounts: Path, uri: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        resolve_mounts(domain_run(uri), mounts)
    assert raised.value.reason == reason
    assert uri in raised.value.message


def test_reports_and_logs_name_addresses_instead_of_paths(mounts: Path) -> None:
    texts: list[object] = []

    class Recorder(LineReporter):
        def complete(self, result: RunResult) -> None:
            texts.append(result.gate_message)

        def fail(self, failure: RunFailure) -> None:
            texts.append(failure.message)

    names = MountPathTranslator(mounts)
    reporter = TranslatingReporter(Recorder(), names)
    path = f"{mounts}/claims/corpora/hotel/b.jsonl"
    reporter.fail(RunFailure(reason="RowMalformed", message=f"Row 3 of {path} (and {mounts}/other) is none."))
    reporter.complete(
        RunResult(artifacts=[], base_digest="b", gate_message=f"{mounts}/configmaps/texts/a.txt")
    )
    record = logging.makeLogRecord({"msg": "%s has no rows", "args": (path,)})
    texts.append(TranslatingFormatter("%(message)s", names).format(record))
    assert texts == [
        f"Row 3 of pvc://corpora/hotel/b.jsonl (and {mounts}/other) is none.",
        "configmap://texts/a.txt",
        "pvc://corpora/hotel/b.jsonl has no rows",
    ]


def test_the_error_for_missing_mounts_says_what_to_set() -> None:
    with pytest.raises(InvalidInput, match="in a cluster only"):
        resolve_mounts(domain_run("configmap://texts/a.txt"), None)


class FlakyServer:
    """Serves files with byte ranges; the next answers can be set to fail."""

    def __init__(self) -> None:
        self.files = {"/a.txt": ROWS, "/a.txt.gz": gzip.compress(ROWS)}
        self.failures: list[int] = []  # status of the next answers; 0 breaks off in the middle
        self.served = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = self.files.get(request.path)
        failure = self.failures.pop(0) if self.failures and request.command == "GET" else None
        if failure or body is None:
            request.send_response(failure or 404)
            request.end_headers()
            return
        first, last = 0, len(body) - 1
        wanted = request.headers.get("Range")
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        else:
            request.send_response(200)
        part = body[first : last + 1]
        request.send_header("Content-Length", str(len(part)))
        request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(part[: len(part) // 2] if failure == 0 else part)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyServer]:
    install_fake_time(monkeypatch)
    flaky = FlakyServer()
    thread = threading.Thread(target=flaky.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield flaky
    flaky.http.shutdown()
    thread.join()
    flaky.http.server_close()
    fsspec.filesystem("http").clear_instance_cache()


def read(uri: str) -> list[str]:
    return list(read_texts([DataSource(uri=uri, format="Text")]))


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("failures", [[], [503, 503], [0], [0, 500, 0]], ids=str)
def test_all_rows_are_read_from_a_server_that_fails_at_times(
    server: FlakyServer, name: str, failures: list[int]
) -> None:
    server.failures = list(failures)
    assert read(f"{server.url}/{name}") == ROWS.decode().splitlines()


@pytest.mark.parametrize("failures", [[], [503, 0]], ids=str)
def test_all_files_of_an_archive_are_read_from_a_server_that_fails_at_times(
    server: FlakyServer, failures: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", ROWS)
        archive.writestr("b.txt", "the last\n")
    server.files["/a.zip"] = packed.getvalue()
    server.failures = list(failures)
    assert read(f"{server.url}/a.zip") == [*ROWS.decode().splitlines(), "the last"]
    monkeypatch.setattr(source_files, "MOST_REMOTE_ARCHIVE_BYTES", 1000)
    with pytest.raises(InvalidInput, match="CorpusTooLarge"):
        read(f"{server.url}/a.zip")


def test_an_unavailable_server_is_retryable(server: FlakyServer) -> None:
    server.failures = [503] * 100
    with pytest.raises(NotReady) as raised:
        read(f"{server.url}/a.txt")
    assert raised.value.reason == "SourceAway"
    assert len(server.failures) < 100


@pytest.mark.parametrize(("failures", "name"), [([], "absent.txt"), ([403] * 100, "a.txt")])
def test_missing_and_forbidden_files_are_not_requested_again(
    server: FlakyServer, failures: list[int], name: str
) -> None:
    server.failures = list(failures)
    with pytest.raises(InvalidInput) as raised:
        read(f"{server.url}/{name}")
    assert raised.value.reason == "CorpusNotFound"
    assert len(server.failures) >= len(failures) - 3


def test_an_adapters_folder_is_fetched_from_a_server(server: FlakyServer, tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 1000}
    server.files |= {f"/lora/{name}": content for name, content in files.items()}
    server.failures = [503, 0]
    folder = download_peft_folder(f"{server.url}/lora", tmp_path / "lora")
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_an_endpoint_without_an_answer_is_transient() -> None:
    exceptions = pytest.importorskip("botocore.exceptions")
    error = exceptions.EndpointConnectionError(endpoint_url="http://store")
    assert remote.is_transient(error)
    assert not remote.is_transient(exceptions.NoCredentialsError())
