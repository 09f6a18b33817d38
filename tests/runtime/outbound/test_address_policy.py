"""What may be read: addresses, listed hosts, mounts, and everything on a user's own machine."""

from pathlib import Path

import pytest
from recording_proxy import name_proxies
from support_outbound import CLUSTER, LISTED, REFUSED_URLS, ROW, Install, Server, read_all

from hmi_api.errors import InvalidInput
from hmi_api.security.address_policy import AddressPolicy
from hmi_runtime.outbound import guard as guards


@pytest.mark.parametrize("uri", REFUSED_URLS)
def test_internal_addresses_are_refused_before_a_lookup(
    uri: str, install: Install, connections: list[str]
) -> None:
    install(CLUSTER)

    with pytest.raises(InvalidInput) as caught:
        read_all(uri)

    assert caught.value.reason == "AddressNotAllowed"
    assert "data.allowedHosts" in caught.value.message
    assert "password" not in caught.value.message
    assert connections == []


INTERNAL_ADDRESSES = [
    "169.254.169.254",
    "127.0.0.1",
    "10.96.0.1",
    "::ffff:10.0.0.1",
    "fd00::1",
    "fe80::1",
    "0.0.0.0",  # noqa: S104
]


@pytest.mark.parametrize("address", INTERNAL_ADDRESSES)
def test_a_name_that_resolves_to_an_internal_address_is_refused(
    address: str, install: Install, connections: list[str]
) -> None:
    install(CLUSTER, {"evil.example": [address]})

    with pytest.raises(InvalidInput) as caught:
        read_all("http://evil.example/rows.jsonl")

    assert caught.value.reason == "AddressNotAllowed"
    assert connections == []


def test_a_listed_host_may_have_a_private_address_but_other_names_may_not(install: Install) -> None:
    guard = install(LISTED, {"data.example": ["10.0.0.9"], "other.example": ["10.0.0.9"]})

    assert guard.addresses("data.example", 443) == ["10.0.0.9"]
    guard.check_connection("10.0.0.9", 443)
    with pytest.raises(InvalidInput):
        guard.addresses("other.example", 443)
    with pytest.raises(InvalidInput):
        guard.check_connection("10.0.0.9", 8080)


def test_a_listed_host_may_not_have_a_link_local_address(install: Install) -> None:
    guard = install(LISTED, {"data.example": ["169.254.169.254"]})

    with pytest.raises(InvalidInput):
        guard.addresses("data.example", 80)


@pytest.mark.parametrize("uri", ["ftp://public.example/x", "file:///etc/passwd", "/etc/passwd", "memory://x"])
def test_other_schemes_and_the_pods_own_files_are_refused(uri: str, install: Install, tmp_path: Path) -> None:
    install(CLUSTER, mounts=tmp_path)

    with pytest.raises(InvalidInput) as caught:
        read_all(uri)
    assert caught.value.reason == "AddressNotAllowed"


def test_chained_addresses_are_refused(install: Install, tmp_path: Path) -> None:
    install(CLUSTER, mounts=tmp_path)

    for uri in ("simplecache::http://127.0.0.1/x", "zip://x.jsonl::http://10.0.0.1/a.zip"):
        with pytest.raises(InvalidInput, match="AddressNotAllowed"):
            read_all(uri)


def test_mounted_files_are_read_but_not_links_out_of_the_mount(install: Install, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.mkdir()
    (mounts / "rows.jsonl").write_bytes(ROW)
    (tmp_path / "secret.jsonl").write_bytes(ROW)
    (mounts / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    install(CLUSTER, mounts=mounts)

    assert read_all(str(mounts / "rows.jsonl")) == [{"text": "a row"}]
    for inside in ("link.jsonl", "../secret.jsonl"):
        with pytest.raises(InvalidInput, match="AddressNotAllowed"):
            read_all(f"{mounts}/{inside}")


def test_a_users_own_machine_reads_its_files_and_its_network(
    install: Install, server: Server, tmp_path: Path, connections: list[str]
) -> None:
    server.answers["/rows.jsonl"] = ROW
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    install(AddressPolicy(own_machine=True), {"localhost": ["127.0.0.1"], "cloud": ["169.254.169.254"]})

    assert read_all(f"http://localhost:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert read_all(f"http://127.0.0.1:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert read_all(str(tmp_path / "rows.jsonl")) == read_all(f"file://{tmp_path}/rows.jsonl")
    server.answers["/away.jsonl"] = "http://169.254.169.254/latest"
    for uri in ("http://169.254.169.254/x", "http://cloud/x", f"http://127.0.0.1:{server.port}/away.jsonl"):
        with pytest.raises(InvalidInput, match="AddressNotAllowed"):
            read_all(uri)
    assert set(connections) == {"127.0.0.1"}


def test_without_configure_a_process_is_on_a_users_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    name_proxies(monkeypatch, {"HTTPS_PROXY": "http://p:1"})

    guard = guards.current_guard()

    assert guard.policy.own_machine
    assert guard.proxies.https == "http://p:1"
