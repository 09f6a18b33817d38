"""The runtime process with the fake control plane."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import torch
from fake_control_plane import TOKEN, FakeControlPlane
from serving import serving

from hmi_api.internal.catalog import AdapterRecord, DomainRecord
from hmi_api.internal.client import Refused
from hmi_api.internal.inference import InferReply
from hmi_api.internal.runs import RunCreate, RunResult
from hmi_api.internal.runtimes import (
    AdapterServing,
    DomainServing,
    Heartbeat,
    HeartbeatReply,
    LoadFailure,
    RuntimeRegistration,
)
from hmi_api.internal.window_counts import WindowCountReport
from hmi_api.names import digest_bytes
from hmi_runtime.adapters.kernels import available_kernels
from hmi_runtime.server.process import RuntimeProcess
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.tables.table import TABLE_FILE

LIMIT = 120.0


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` is true; fail after a limit."""
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"did not happen: {what}"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ControlPlane(FakeControlPlane):
    """The fake control plane, with the adapters that a test declares."""

    def serve(self, *adapters: AdapterServing, domains: tuple[DomainServing, ...]) -> None:
        """Publish these, and delete all other TaskAdapters, in one step."""
        with self.lock:
            for domain in domains:
                self._publish_domain(domain)
            for key in self.catalog.adapters.keys() - {adapter.key for adapter in adapters}:
                self.catalog.delete(self.catalog.adapters, key)
            for adapter in adapters:
                self._publish_adapter(adapter)

    def beats(self, since: int = 0) -> list[Heartbeat]:
        """Return the heartbeats, without the first ``since``."""
        return self.bodies("POST /runtimes/[^/]+/heartbeat", Heartbeat)[since:]

    def failures(self) -> list[LoadFailure]:
        """Return the failed loads that runtimes have reported."""
        return [failure for beat in self.beats() for failure in beat.failed]

    def _publish_domain(self, domain: DomainServing) -> None:
        version, (namespace, name) = domain.version, domain.key.split("/")
        row = self.catalog.domains.get(domain.key)
        published = [(one.layers, one.tables) for one in row.versions] if row is not None else []
        if (version.layers, version.tables) in published:
            return
        self.catalog.tenants.add(namespace)
        digest = digest_bytes("".join(one.digest for one in [version.layers, *version.tables]).encode())
        record = DomainRecord(
            uid=name, tenant=namespace, generation=1, spec_digest=digest, base_uri=version.base.uri
        )
        self.catalog.declare(self.catalog.domains, domain.key, record)
        spec = {"baseModel": version.base, "corpus": [{"uri": "c.jsonl"}], "split": version.split}
        artifacts = [version.layers, *version.tables]
        run = {"kind": "domain", "namespace": namespace, "name": name, "spec": spec}
        self._finish(record, run, artifacts=artifacts, base_digest=version.base_digest, split=version.split)

    def _publish_adapter(self, adapter: AdapterServing) -> None:
        tenant, name = adapter.key.split("/")
        row = self.catalog.adapters.get(adapter.key)
        if row is not None and row.current is not None:
            if row.current.artifact == adapter.artifact:
                return
            if row.current.version == adapter.version:  # another TaskAdapter of this name
                self.catalog.delete(self.catalog.adapters, adapter.key)
        self.catalog.tenants.add(tenant)
        record = AdapterRecord(
            uid=name,
            tenant=tenant,
            generation=1,
            spec_digest=adapter.artifact.digest,
            domain=adapter.domain,
            task_type=adapter.task_type,
        )
        self.catalog.declare(self.catalog.adapters, adapter.key, record)
        namespace, domain = adapter.domain.split("/")
        spec = {
            "domainRef": {"name": domain, "namespace": namespace},
            "task": {"type": adapter.task_type},
            "data": {"train": {"uri": "r.jsonl"}},
        }
        version = self.catalog.domains[adapter.domain].versions[adapter.domain_version - 1]
        run = {"kind": "adapter", "namespace": tenant, "name": name, "spec": spec, "domain": version}
        self._finish(record, run, artifacts=[adapter.artifact], base_digest="", labels=adapter.labels)

    def _finish(self, record: DomainRecord | AdapterRecord, spec: dict[str, Any], **result: Any) -> None:
        run = RunCreate.model_validate(
            {"uid": record.uid, "tenant": record.tenant, "spec_digest": record.spec_digest, "spec": spec}
        )
        self.catalog.complete_run(self.catalog.create_run(run).id, RunResult(**result))


@dataclass
class Runtime:
    url: str

    def infer(self, *rows: dict[str, object], token: str = TOKEN) -> httpx.Response:
        return httpx.post(
            f"{self.url}/internal/v1/infer",
            json={"requestId": "r", "rows": list(rows)},
            headers={"Authorization": f"Bearer {token}"},
            timeout=LIMIT,
        )

    def first(self, adapter: str) -> object:
        """Return the version that answered, or the reason why none did."""
        result = InferReply.model_validate_json(
            self.infer({"adapter": adapter, "text": "a wheel"}).content
        ).results[0]
        return result.error.reason if result.error else result.version

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture
def control_plane() -> ControlPlane:
    return ControlPlane()


@pytest.fixture
def runtime(control_plane: ControlPlane, settings: RuntimeSettings) -> Iterator[Runtime]:
    with serving(control_plane.app, lifespan="off") as url:
        port = free_port()
        own = settings.model_copy(
            update={"control_plane_url": url, "runtime_url": f"http://127.0.0.1:{port}"}
        )
        with serving(RuntimeProcess(own).app, port) as runtime_url:
            yield Runtime(runtime_url)


def test_a_desired_adapter_is_loaded_and_reported(models, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
    eventually(lambda: runtime.get("/readyz").status_code == 200, "the runtime is ready")
    assert runtime.first("acme/topic") == 1
    stats = runtime.get("/internal/v1/stats").json()
    assert stats["registered_adapters"] == 1
    assert stats["tenants"]["acme"]["host"] > 0
    assert stats["domains"]["bikes/repair@1"]["lookups"] == 4
    text = runtime.get("/metrics").text
    for name in ("hmi_batch_size", "hmi_plot_lookups_total", "hmi_adapter_loads_total", "hmi_resident_bytes"):
        assert name in text
    assert runtime.get("/healthz").status_code == 200


def test_looked_up_windows_are_reported_when_the_runtime_stops(models, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    with serving(control_plane.app, lifespan="off") as url:
        address = {"control_plane_url": url, "runtime_url": f"http://127.0.0.1:{port}"}
        with serving(RuntimeProcess(settings.model_copy(update=address)).app, port) as runtime_url:
            runtime = Runtime(runtime_url)
            eventually(lambda: runtime.first("acme/topic") == 1, "the adapter answers")
            eventually(
                lambda: "hmi_windows_counted_total 4.0" in runtime.get("/metrics").text,
                "the windows are counted",
            )
    (report,) = control_plane.bodies("POST /runtimes/[^/]+/window-counts", WindowCountReport)
    (counted,) = report.domains
    assert (counted.domain, counted.lookups, counted.hits) == ("bikes/repair", 4, 0)
    (tenant,) = counted.tenants
    assert (tenant.tenant_id, tenant.windows) == ("tenant_acme", 4)


def test_metrics_have_a_port_of_their_own(control_plane: ControlPlane, settings: RuntimeSettings) -> None:
    port, metrics_port = free_port(), free_port()
    with serving(control_plane.app, lifespan="off") as url:
        own = settings.model_copy(
            update={
                "control_plane_url": url,
                "runtime_url": f"http://127.0.0.1:{port}",
                "metrics_port": metrics_port,
            }
        )
        with serving(RuntimeProcess(own).app, port) as runtime_url:
            runtime = Runtime(runtime_url)
            for path in ("/metrics", "/openapi.json", "/docs"):
                assert runtime.get(path).status_code == 404
            text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    for name in ("hmi_batch_size", "hmi_queue_rows", "hmi_registered_adapters"):
        assert name in text


def test_a_restarted_runtime_takes_the_pool_s_precision(models, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    names = [one.name for one in available_kernels(torch.device("cpu"))]
    if len(names) < 2:
        pytest.skip("this machine has one way to compute")
    with serving(control_plane.app, lifespan="off") as plane:
        first = _served_precision(control_plane, settings, plane)
        assert first in names
        # As if another replica had been first with another choice.
        precision, kernel = next(name for name in names if name != first).split("/")
        ((key, choice),) = control_plane.runtimes.choices.items()
        wanted = choice.model_copy(update={"precision": precision, "kernel": kernel})
        control_plane.runtimes.choices[key] = wanted
        assert _served_precision(control_plane, settings, plane) == f"{precision}/{kernel}"
        # A control plane that does not know these calls changes nothing for its runtimes.
        control_plane.fail(404, request="(POST|PUT) /runtimes/runtime-0/(precision|engines)", times=99)
        assert _served_precision(control_plane, settings, plane, reported=False) == f"{precision}/{kernel}"


def _served_precision(
    control_plane: ControlPlane, settings: RuntimeSettings, plane: str, *, reported: bool = True
) -> str:
    """Run a runtime until it serves; return the precision/kernel that it shows."""
    port = free_port()
    urls = {"control_plane_url": plane, "runtime_url": f"http://127.0.0.1:{port}"}
    with serving(RuntimeProcess(settings.model_copy(update={**urls, "precision": "auto"})).app, port) as url:
        eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
        (engine,) = Runtime(url).get("/internal/v1/stats").json()["engines"]
        shown = f"{engine['precision']}/{engine['kernel']}"
        labels = f'kernel="{engine["kernel"]}",precision="{engine["precision"]}",split="2"'
        metrics = Runtime(url).get("/metrics").text
        assert re.search(rf'hmi_runtime_precision{{base="[^"]+",{re.escape(labels)}}} 1.0', metrics)
        if reported:
            stored = control_plane.runtimes.registered["runtime-0"]
            eventually(lambda: stored.engines is not None, "the engines are reported")
            (report,) = stored.engines.engines
            assert f"{report.choice.precision}/{report.choice.kernel}" == shown
            assert (stored.engines.pool, report.recorded) == ("default", True)
    return shown


def test_a_precision_that_cannot_run_ends_the_process_with_advice() -> None:
    environment = {**os.environ, "HMI_CONTROL_PLANE_URL": "http://127.0.0.1:9", "HMI_INTERNAL_TOKEN": TOKEN}
    environment |= {"HMI_PRECISION": "int8", "HMI_DEVICE": "cuda:99"}
    command = [sys.executable, "-m", "hmi_runtime.server"]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert ended.returncode == 1
    assert "HMI_PRECISION is int8, which this machine cannot run" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_versions_change_over_without_dropping_a_request(models, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    old, new = models.domain("bikes/repair", 1, seed=1), models.domain("bikes/repair", 2, seed=2)
    control_plane.serve(models.adapter("acme/topic", old), domains=(old,))
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "version 1 is ready")
    seen: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            seen.append(runtime.first("acme/topic"))

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: seen, "version 1 answers")
    control_plane.serve(models.adapter("acme/topic", new, version=2, seed=7), domains=(old, new))
    eventually(
        lambda: control_plane.runtimes.loaded() == {"acme/topic@2"}, "version 2 is ready and version 1 gone"
    )
    stop.set()
    asking.join(LIMIT)
    assert set(seen) == {1, 2}
    assert seen == sorted(seen)  # type: ignore[type-var]


def test_an_adapter_created_again_under_its_name_is_reported_again(models, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain, seed=1), domains=(domain,))
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the first one is ready")
    before = len(control_plane.beats())
    second = models.adapter("acme/topic", domain, seed=2)
    control_plane.serve(second, domains=(domain,))
    eventually(lambda: any(beat.ready for beat in control_plane.beats(before)), "the second one is ready")
    copies = models.folder / "cache" / "adapter"
    kept = {second.artifact.digest.removeprefix("sha256:")}
    eventually(lambda: {path.name for path in copies.iterdir()} == kept, "the first one's copy is gone")
    assert runtime.first("acme/topic") == 1
    assert control_plane.runtimes.loaded() == {"acme/topic@1"}


def test_a_removed_adapter_is_unloaded_and_its_copy_deleted(models, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    kept, removed = models.adapter("acme/a", domain, seed=1), models.adapter("zeta/b", domain, seed=2)
    control_plane.serve(kept, removed, domains=(domain,))
    eventually(lambda: len(control_plane.runtimes.loaded()) == 2, "both are ready")
    assert runtime.first("zeta/b") == 1
    control_plane.serve(kept, domains=(domain,))
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/a@1"}, "the other is gone")
    assert runtime.first("zeta/b") == "NotLoaded"
    assert runtime.first("acme/a") == 1
    assert "zeta" not in runtime.get("/internal/v1/stats").json()["tenants"]
    copies = {path.name for path in (models.folder / "cache" / "adapter").iterdir()}
    assert copies == {kept.artifact.digest.removeprefix("sha256:")}


def test_a_damaged_adapter_is_reported_and_others_are_served(models, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    good, bad = models.adapter("acme/good", domain, seed=1), models.adapter("acme/bad", domain, seed=2)
    stored = models.folder / "store" / bad.artifact.uri / "adapter.safetensors"
    stored.write_bytes(stored.read_bytes()[:-8])
    control_plane.serve(bad, good, domains=(domain,))
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/good@1"}, "the good one is ready")
    eventually(control_plane.failures, "the bad one is reported")
    failure = control_plane.failures()[0]
    assert (failure.adapter, failure.reason) == ("acme/bad", "ArtifactTruncated")
    assert runtime.first("acme/good") == 1
    eventually(lambda: runtime.get("/readyz").status_code == 200, "the runtime is ready all the same")


def test_an_adapter_too_large_for_a_slot_is_reported_and_never_ready(models, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    good = models.adapter("acme/good", domain, seed=1)
    large = models.adapter("acme/large", domain, seed=2, labels=9)  # slots have room for 8
    control_plane.serve(large, good, domains=(domain,))
    eventually(control_plane.failures, "the large one is reported")
    failure = control_plane.failures()[0]
    assert (failure.adapter, failure.reason) == ("acme/large", "AdapterTooLarge")
    assert "HMI_MAX_LABELS" in failure.message
    eventually(lambda: runtime.get("/readyz").status_code == 200, "the runtime is ready all the same")
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/good@1"}, "only the good one is ready")
    assert runtime.first("acme/large") == "NotLoaded"


def test_a_runtime_unknown_to_the_control_plane_registers_again(models, control_plane, runtime) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
    control_plane.runtimes.deregister("runtime-0")
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "it is reported again")
    assert len([call for call in control_plane.calls() if call == "PUT /runtimes/runtime-0"]) == 2
    assert runtime.first("acme/topic") == 1


def test_a_control_plane_that_knows_one_capacity_is_told_one(
    models, control_plane, settings, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    known = control_plane.runtimes.register

    def register_as_before(name: str, registration: RuntimeRegistration) -> None:
        if "tableBytes" in registration.model_dump(by_alias=True):
            raise Refused(422, "InvalidField", "tableBytes: extra inputs are not permitted")
        known(name, registration)

    monkeypatch.setattr(control_plane.runtimes, "register", register_as_before)
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    with serving(control_plane.app, lifespan="off") as url:
        port = free_port()
        urls = {"control_plane_url": url, "runtime_url": f"http://127.0.0.1:{port}"}
        with serving(RuntimeProcess(settings.model_copy(update=urls)).app, port):
            eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
    (registration,) = control_plane.bodies("PUT /runtimes/[^/]+", RuntimeRegistration)[1:]
    assert registration.capacity_bytes == settings.host_budget + settings.table_budget


@pytest.mark.parametrize("known", [True, False], ids=["today", "earlier control plane"])
def test_a_table_that_cannot_be_taken_is_reported_and_the_adapter_serves(
    models, control_plane, runtime, monkeypatch, known
) -> None:  # type: ignore[no-untyped-def]
    take = control_plane.runtimes.heartbeat
    refused: list[LoadFailure] = []

    def take_as_before(name: str, beat: Heartbeat) -> HeartbeatReply:
        if any(failure.serves for failure in beat.failed):
            refused.extend(beat.failed)
            raise Refused(422, "InvalidField", "failed.0.serves: extra inputs are not permitted")
        return take(name, beat)

    if not known:
        monkeypatch.setattr(control_plane.runtimes, "heartbeat", take_as_before)
    domain = models.domain("bikes/repair")
    adapter = models.adapter("acme/topic", domain)
    control_plane.serve(adapter, domains=(domain,))
    eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
    new = models.refreshed(domain, ["a wheel"])
    stored = models.folder / "store" / new.version.tables[0].uri / TABLE_FILE
    stored.write_bytes(stored.read_bytes()[:-8])
    control_plane.serve(adapter, domains=(new,))
    beats = len(control_plane.beats())
    eventually(control_plane.failures if known else lambda: refused, "the failure is sent")
    (failure,) = control_plane.failures()[:1] if known else refused[:1]
    assert (failure.adapter, failure.reason, failure.serves) == ("acme/topic", "ArtifactTruncated", True)
    eventually(lambda: len(control_plane.beats()) > beats + 1, "heartbeats go on")
    assert control_plane.runtimes.loaded() == {"acme/topic@1"}
    assert runtime.first("acme/topic") == 1


def test_a_runtime_keeps_serving_without_the_control_plane(models, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    plane_port, port = free_port(), free_port()
    urls = {"control_plane_url": f"http://127.0.0.1:{plane_port}", "runtime_url": f"http://127.0.0.1:{port}"}
    process = RuntimeProcess(settings.model_copy(update=urls))
    with serving(process.app, port) as url:
        runtime = Runtime(url)
        assert runtime.get("/readyz").status_code == 503
        with serving(control_plane.app, plane_port, lifespan="off"):
            eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
        assert runtime.first("acme/topic") == 1
        assert runtime.get("/readyz").status_code == 200


def test_requests_need_the_internal_token(runtime) -> None:  # type: ignore[no-untyped-def]
    refused = runtime.infer({"adapter": "a/b", "text": "x"}, token="something-else")
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    malformed = runtime.infer({"adapter": "a/b", "surprise": 1})
    assert malformed.status_code == 400
    assert "error" in malformed.json()


def test_a_body_beyond_the_limit_is_refused(control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    process = RuntimeProcess(settings.model_copy(update={"body_limit_bytes": 1000}))
    with serving(process.app, port) as url:
        assert Runtime(url).infer({"adapter": "a/b", "text": "x" * 2000}).status_code == 413


def test_a_missing_body_is_408_with_the_token_and_401_without(control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    process = RuntimeProcess(settings.model_copy(update={"body_seconds": 0.3}))

    def answer(token: str) -> bytes:
        lines = [f"Authorization: Bearer {token}", "Content-Type: application/json", "Content-Length: 1000"]
        head = "\r\n".join(["POST /internal/v1/infer HTTP/1.1", "Host: x", *lines, "", ""])
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as connection:
            connection.sendall(head.encode())
            return connection.recv(65536)

    with serving(process.app, port):
        assert answer(TOKEN).startswith(b"HTTP/1.1 408 ")
        assert answer("something-else").startswith(b"HTTP/1.1 401 ")


def test_sigterm_drains_deregisters_and_ends(models, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    port = free_port()
    with serving(control_plane.app, lifespan="off") as plane:
        environment = {
            **os.environ,
            "HMI_CONTROL_PLANE_URL": plane,
            "HMI_INTERNAL_TOKEN": TOKEN,
            "HMI_RUNTIME_URL": f"http://127.0.0.1:{port}",
            "HMI_ARTIFACTS": settings.artifacts,
            "HMI_CACHE_DIR": str(settings.cache_dir),
            "HMI_THREADS": "1",
        }
        child = subprocess.Popen([sys.executable, "-m", "hmi_runtime.server"], env=environment)
        try:
            eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
            assert Runtime(f"http://127.0.0.1:{port}").first("acme/topic") == 1
            child.send_signal(signal.SIGTERM)
            assert child.wait(LIMIT) in (0, -signal.SIGTERM)
        finally:
            child.kill()
            child.wait()
    assert [call for call in control_plane.calls() if call.startswith("DELETE")] == [
        "DELETE /runtimes/runtime-0"
    ]
