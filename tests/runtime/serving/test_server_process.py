"""The runtime process: its ports, limits and precision, and how it starts and ends."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
import torch
from fake_control_plane import TOKEN
from runtime_process import PublishingControlPlane, RuntimeAtUrl
from serving import LIMIT, eventually, free_port, serving

from hmi_api.internal.window_counts import WindowCountReport
from hmi_runtime.adapters.kernels import available_kernels
from hmi_runtime.server.process import RuntimeProcess
from hmi_runtime.server.settings import RuntimeSettings


def test_looked_up_windows_are_reported_when_the_runtime_stops(models, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    port = free_port()
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    with serving(control_plane.app, lifespan="off") as url:
        address = {"control_plane_url": url, "runtime_url": f"http://127.0.0.1:{port}"}
        with serving(RuntimeProcess(settings.model_copy(update=address)).app, port) as runtime_url:
            runtime = RuntimeAtUrl(runtime_url)
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


def test_metrics_have_a_port_of_their_own(
    control_plane: PublishingControlPlane, settings: RuntimeSettings
) -> None:
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
            runtime = RuntimeAtUrl(runtime_url)
            for path in ("/metrics", "/openapi.json", "/docs"):
                assert runtime.get(path).status_code == 404
            text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    for name in ("hmi_batch_size", "hmi_queue_rows", "hmi_registered_adapters"):
        assert name in text


def test_a_restarted_runtime_takes_the_pool_s_precision(models, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    # The model is too narrow for the C++ kernels.
    names = [one.name for one in available_kernels(torch.device("cpu")) if one.library != "native"]
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
    control_plane: PublishingControlPlane, settings: RuntimeSettings, plane: str, *, reported: bool = True
) -> str:
    """Run a runtime until it serves; return the precision/kernel that it shows."""
    port = free_port()
    urls = {"control_plane_url": plane, "runtime_url": f"http://127.0.0.1:{port}"}
    with serving(RuntimeProcess(settings.model_copy(update={**urls, "precision": "auto"})).app, port) as url:
        eventually(lambda: control_plane.runtimes.loaded() == {"acme/topic@1"}, "the adapter is ready")
        (engine,) = RuntimeAtUrl(url).get("/internal/v1/stats").json()["engines"]
        shown = f"{engine['precision']}/{engine['kernel']}"
        labels = f'kernel="{engine["kernel"]}",precision="{engine["precision"]}",split="2"'
        metrics = RuntimeAtUrl(url).get("/metrics").text
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


def test_a_runtime_keeps_serving_without_the_control_plane(models, control_plane, settings) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    control_plane.serve(models.adapter("acme/topic", domain), domains=(domain,))
    plane_port, port = free_port(), free_port()
    urls = {"control_plane_url": f"http://127.0.0.1:{plane_port}", "runtime_url": f"http://127.0.0.1:{port}"}
    process = RuntimeProcess(settings.model_copy(update=urls))
    with serving(process.app, port) as url:
        runtime = RuntimeAtUrl(url)
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
        assert RuntimeAtUrl(url).infer({"adapter": "a/b", "text": "x" * 2000}).status_code == 413


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
            assert RuntimeAtUrl(f"http://127.0.0.1:{port}").first("acme/topic") == 1
            child.send_signal(signal.SIGTERM)
            assert child.wait(LIMIT) in (0, -signal.SIGTERM)
        finally:
            child.kill()
            child.wait()
    assert [call for call in control_plane.calls() if call.startswith("DELETE")] == [
        "DELETE /runtimes/runtime-0"
    ]
