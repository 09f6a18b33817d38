"""What a runtime loads, unloads and reports as the control plane's desired state changes."""

import threading

import pytest
from serving import LIMIT, eventually, free_port, serving

from hmi_api.internal.client import Refused
from hmi_api.internal.runtimes import Heartbeat, HeartbeatReply, LoadFailure, RuntimeRegistration
from hmi_runtime.server.process import RuntimeProcess
from hmi_runtime.tables.table import TABLE_FILE


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
