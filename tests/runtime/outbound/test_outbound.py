"""Calls to addresses that tenants name: what they may lead to, after every redirect, and through which proxy.

Nothing here is ever sent to another address than loopback: resolvers are stand-ins, and a connection to
anything else fails the test before it is made.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import fsspec
import httpx2
import huggingface_hub
import pytest
import trustme
from recording_proxy import RecordingProxy, name_proxies, recording_proxy

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.resources.common import DataSource
from hmi_api.security.address_policy import AddressPolicy
from hmi_runtime.models.source import resolve_base
from hmi_runtime.outbound import guard as guards
from hmi_runtime.outbound.clients import GuardedTransport, open_address, use_guarded_client
from hmi_runtime.outbound.guard import Guard, find_guard_error
from hmi_runtime.training import resumable_io
from hmi_runtime.training.data_reader import read_rows, read_texts
from hmi_runtime.training.peft import download_peft_folder
from hmi_runtime.training.source_files import DataUse, SourceStats

ROW = b'{"text": "a row"}\n'
CLUSTER = AddressPolicy()
LISTED = AddressPolicy(allowed_hosts=("data.example", ".listed.example"))
"""The stand-in resolver sends listed names to loopback; loopback is opened by the network below."""
LOOPBACK = ip_network("127.0.0.1/32")


class Server:
    """An HTTP server on loopback; answers by path, with a redirect where the answer is an address."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | str] = {}
        self.asked: list[tuple[str, str]] = []
        self.missing = 404
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.headers["Host"], self.path))
                answer = server.answers.get(self.path)
                if isinstance(answer, str):
                    self.send_response(302)
                    self.send_header("Location", answer)
                    answer = b""
                else:
                    self.send_response(200 if answer else server.missing, None if answer else "SECRET-REASON")
                body = answer or b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 -- a name of http.server's

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]

    def serve(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield self
        self.http.shutdown()
        thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from Server().serve()


@pytest.fixture
def proxy() -> Iterator[RecordingProxy]:
    with recording_proxy() as made:
        yield made


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that are connected to; anything but loopback is never reached."""
    made: list[str] = []

    def note(address: Any) -> None:
        made.append(str(address[0]))
        if not ip_address(address[0]).is_loopback:
            raise AssertionError(f"would connect to {address}")

    connect, sock_connect = socket.socket.connect, asyncio.selector_events.BaseSelectorEventLoop.sock_connect

    def noted(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            note(address)
        connect(self, address)

    async def noted_async(self: Any, sock: socket.socket, address: Any) -> None:
        note(address)
        await sock_connect(self, sock, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", noted_async)
    return made


Install = Callable[..., Guard]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Give the process a guard with a stand-in for the resolver."""

    def installed(
        policy: AddressPolicy,
        names: dict[str, Sequence[str]] | None = None,
        *,
        proxies: dict[str, str] | None = None,
        mounts: Path | None = None,
    ) -> Guard:
        def lookup(host: str, port: int) -> Sequence[str]:
            assert names is not None, f"{host} was looked up"
            if host not in names:
                raise OSError(f"no such name: {host}")
            return names[host]

        name_proxies(monkeypatch, proxies or {})
        monkeypatch.setattr(guards, "process", guards.Process(policy, mounts, lookup))
        monkeypatch.setattr(resumable_io, "_RETRY", replace(resumable_io._RETRY, attempts=1))
        return guards.current_guard()

    return installed


def _read(uri: str) -> list[object]:
    return [
        dict(row.fields)
        for row in read_rows(DataSource(uri=uri, format="JSONLines"), SourceStats(DataUse.CORPUS))
    ]


def _open_to_loopback() -> AddressPolicy:
    return AddressPolicy(allowed_networks=(LOOPBACK,))


# --- data over http --------------------------------------------------------------------------------

REFUSED_URLS = [
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1/x",
    "http://127.1/x",
    "http://2130706433/x",
    "http://0x7f000001/x",
    "http://0177.0.0.1/x",
    "http://0xa9.0xfe.0xa9.0xfe/x",
    "http://[::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://[::ffff:a9fe:a9fe]/x",
    "http://[64:ff9b::a9fe:a9fe]/x",
    "http://[fe80::1]/x",
    "http://[fd00:ec2::254]/x",
    "http://10.0.0.1/x",
    "http://100.64.0.1/x",
    "http://0.0.0.0/x",
    "http://224.0.0.1/x",
    "http://localhost/x",
    "http://LOCALHOST./x",
    "http://hmi-control-plane/metrics",
    "http://hmi-control-plane.hmi-system.svc/metrics",
    "http://hmi-control-plane.hmi-system.svc.cluster.local/metrics",
    "http://hmi-control-plane.hmi-system.svc.corp.example/metrics",
    "http://metadata.google.internal/x",
    "http://Metadata.Google.Internal./x",
    "https://user:password@169.254.169.254/x",
]


@pytest.mark.parametrize("uri", REFUSED_URLS)
def test_addresses_of_the_inside_are_refused_before_anything_is_looked_up(
    uri: str, install: Install, connections: list[str]
) -> None:
    install(CLUSTER)

    with pytest.raises(InvalidInput) as caught:
        _read(uri)

    assert caught.value.reason == "AddressNotAllowed"
    assert "data.allowedHosts" in caught.value.message
    assert "password" not in caught.value.message
    assert connections == []


LEADS_TO = ["169.254.169.254", "127.0.0.1", "10.96.0.1", "::ffff:10.0.0.1", "fd00::1", "fe80::1", "0.0.0.0"]  # noqa: S104


@pytest.mark.parametrize("address", LEADS_TO)
def test_a_name_that_leads_inside_is_refused(address: str, install: Install, connections: list[str]) -> None:
    install(CLUSTER, {"evil.example": [address]})

    with pytest.raises(InvalidInput) as caught:
        _read("http://evil.example/rows.jsonl")

    assert caught.value.reason == "AddressNotAllowed"
    assert connections == []


def test_the_address_that_was_checked_is_the_one_connected_to(
    install: Install, server: Server, connections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name leads elsewhere at the second look (DNS rebinding)."""
    server.answers["/rows.jsonl"] = ROW
    answers = iter([["127.0.0.1"], *[["169.254.169.254"]] * 20])
    names: dict[str, Sequence[str]] = {}
    install(_open_to_loopback(), names)
    monkeypatch.setattr(guards.process, "lookup", lambda host, port: next(answers))

    filesystem, path = open_address(f"http://rebinding.example:{server.port}/rows.jsonl")
    assert filesystem.cat_file(path) == ROW  # looked up once, and connected to what that said
    fsspec.asyn.sync(filesystem.loop, filesystem._session.close)
    filesystem._session = None
    with pytest.raises((InvalidInput, FileNotFoundError)) as caught:
        filesystem.cat_file(path)

    assert find_guard_error(caught.value) is not None
    assert set(connections) == {"127.0.0.1"}


def test_of_several_addresses_only_those_allowed_are_tried(
    install: Install, server: Server, connections: list[str]
) -> None:
    server.answers["/rows.jsonl"] = ROW
    install(_open_to_loopback(), {"mixed.example": ["169.254.169.254", "127.0.0.1", "10.0.0.1"]})

    assert _read(f"http://mixed.example:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert set(connections) == {"127.0.0.1"}


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest",
        "http://[::ffff:169.254.169.254]/latest",
        "http://2852039166/latest",
        "http://evil.example/x",
        "http://metadata.google.internal/x",
        "//169.254.169.254/latest",
    ],
)
def test_a_redirect_inside_is_not_followed(
    target: str, install: Install, server: Server, connections: list[str]
) -> None:
    server.answers["/rows.jsonl"] = target
    install(_open_to_loopback(), {"good.example": ["127.0.0.1"], "evil.example": ["169.254.169.254"]})

    with pytest.raises(InvalidInput) as caught:
        _read(f"http://good.example:{server.port}/rows.jsonl")

    assert caught.value.reason == "AddressNotAllowed"
    assert set(connections) == {"127.0.0.1"}


def test_a_redirect_to_what_is_allowed_is_followed(install: Install, server: Server) -> None:
    server.answers["/rows.jsonl"] = f"http://other.example:{server.port}/there.jsonl"
    server.answers["/there.jsonl"] = ROW
    install(_open_to_loopback(), {"good.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})

    assert _read(f"http://good.example:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert (f"other.example:{server.port}", "/there.jsonl") in server.asked


def test_a_listed_host_may_be_private_and_another_name_for_it_may_not(install: Install) -> None:
    guard = install(LISTED, {"data.example": ["10.0.0.9"], "other.example": ["10.0.0.9"]})

    assert guard.addresses("data.example", 443) == ["10.0.0.9"]
    guard.check_connection("10.0.0.9", 443)
    with pytest.raises(InvalidInput):
        guard.addresses("other.example", 443)
    with pytest.raises(InvalidInput):
        guard.check_connection("10.0.0.9", 8080)


def test_even_a_listed_host_does_not_lead_to_link_local_addresses(install: Install) -> None:
    guard = install(LISTED, {"data.example": ["169.254.169.254"]})

    with pytest.raises(InvalidInput):
        guard.addresses("data.example", 80)


def test_an_imported_adapter_goes_the_same_way(
    install: Install, tmp_path: Path, connections: list[str]
) -> None:
    install(CLUSTER, {"evil.example": ["127.0.0.1"]})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        download_peft_folder("http://evil.example/adapter", tmp_path / "adapter")
    assert connections == []


@pytest.mark.parametrize("uri", ["ftp://public.example/x", "file:///etc/passwd", "/etc/passwd", "memory://x"])
def test_other_schemes_and_files_of_the_pod_are_refused(uri: str, install: Install, tmp_path: Path) -> None:
    install(CLUSTER, mounts=tmp_path)

    with pytest.raises(InvalidInput) as caught:
        _read(uri)
    assert caught.value.reason == "AddressNotAllowed"


def test_chained_addresses_are_refused(install: Install, tmp_path: Path) -> None:
    install(CLUSTER, mounts=tmp_path)

    for uri in ("simplecache::http://127.0.0.1/x", "zip://x.jsonl::http://10.0.0.1/a.zip"):
        with pytest.raises(InvalidInput, match="AddressNotAllowed"):
            _read(uri)


def test_what_is_mounted_is_read_and_no_link_out_of_it(install: Install, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.mkdir()
    (mounts / "rows.jsonl").write_bytes(ROW)
    (tmp_path / "secret.jsonl").write_bytes(ROW)
    (mounts / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    install(CLUSTER, mounts=mounts)

    assert _read(str(mounts / "rows.jsonl")) == [{"text": "a row"}]
    for inside in ("link.jsonl", "../secret.jsonl"):
        with pytest.raises(InvalidInput, match="AddressNotAllowed"):
            _read(f"{mounts}/{inside}")


def test_a_users_own_machine_reads_its_files_and_its_network(
    install: Install, server: Server, tmp_path: Path, connections: list[str]
) -> None:
    server.answers["/rows.jsonl"] = ROW
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    install(AddressPolicy(own_machine=True), {"localhost": ["127.0.0.1"], "cloud": ["169.254.169.254"]})

    assert _read(f"http://localhost:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert _read(f"http://127.0.0.1:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert _read(str(tmp_path / "rows.jsonl")) == _read(f"file://{tmp_path}/rows.jsonl")
    server.answers["/away.jsonl"] = "http://169.254.169.254/latest"
    for uri in ("http://169.254.169.254/x", "http://cloud/x", f"http://127.0.0.1:{server.port}/away.jsonl"):
        with pytest.raises(InvalidInput, match="AddressNotAllowed"):
            _read(uri)
    assert set(connections) == {"127.0.0.1"}


# --- what is said of it ----------------------------------------------------------------------------


def test_nothing_that_a_server_says_stands_in_a_message(install: Install, server: Server) -> None:
    install(_open_to_loopback(), {"good.example": ["127.0.0.1"]})
    base = f"http://good.example:{server.port}"
    server.answers["/page.jsonl"] = b"SECRET-REASON and more\n"
    server.answers["/object.jsonl"] = b'{"SECRET-REASON": 1}\n'
    server.answers["/table.csv"] = b"SECRET-REASON,b\n1,2\n"

    for uri, format_ in (
        ("missing.jsonl", "JSONLines"),
        ("page.jsonl", "JSONLines"),
        ("object.jsonl", "JSONLines"),
        ("table.csv", "CSV"),
    ):
        source = DataSource(uri=f"{base}/{uri}", format=format_)
        for missing in (404, 403, 500):
            server.missing = missing
            with pytest.raises(HmiError) as caught:
                list(read_texts([source]))
            assert "SECRET-REASON" not in caught.value.message, uri


# --- proxies ---------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.LeafCert:
    """A certificate of data.example's, whose authority this process trusts."""
    authority = trustme.CA()
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    return authority.issue_cert("data.example")


@pytest.fixture
def secure_server(certificate: trustme.LeafCert) -> Iterator[Server]:
    """The same over TLS."""
    made = Server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    made.http.socket = context.wrap_socket(made.http.socket, server_side=True)
    yield from made.serve()


def test_data_goes_through_the_proxy_by_name(install: Install, proxy: RecordingProxy) -> None:
    proxy.answers["http://data.example/rows.jsonl"] = ROW
    host = proxy.url.replace("127.0.0.1", "proxy.example").replace("http://", "http://user:word@")
    install(CLUSTER, {"proxy.example": ["127.0.0.1"]}, proxies={"HTTP_PROXY": host})

    assert _read("http://data.example/rows.jsonl") == [{"text": "a row"}]
    assert "GET http://data.example/rows.jsonl" in proxy.asked
    assert set(proxy.credentials) == {"Basic dXNlcjp3b3Jk"}


def test_secure_data_goes_through_the_proxy(
    install: Install, proxy: RecordingProxy, secure_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiohttp import connector

    trusting = ssl.create_default_context()
    monkeypatch.setattr(connector, "_SSL_CONTEXT_VERIFIED", trusting)
    secure_server.answers["/rows.jsonl"] = ROW
    proxy.tunnels["data.example:443"] = ("127.0.0.1", secure_server.port)
    install(CLUSTER, {}, proxies={"HTTPS_PROXY": proxy.url})

    assert _read("https://data.example/rows.jsonl") == [{"text": "a row"}]
    assert set(proxy.asked) == {"CONNECT data.example:443"}


@pytest.mark.parametrize("uri", REFUSED_URLS)
def test_a_proxy_is_not_asked_for_the_inside(uri: str, install: Install, proxy: RecordingProxy) -> None:
    install(CLUSTER, {}, proxies={"ALL_PROXY": proxy.url})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        _read(uri)
    assert proxy.asked == []


def test_no_proxy_is_respected_and_the_policy_with_it(
    install: Install, proxy: RecordingProxy, server: Server
) -> None:
    server.answers["/rows.jsonl"] = ROW
    install(
        _open_to_loopback(),
        {"near.example": ["127.0.0.1"], "evil.near.example": ["10.0.0.1"]},
        proxies={"ALL_PROXY": proxy.url, "NO_PROXY": "near.example"},
    )

    assert _read(f"http://near.example:{server.port}/rows.jsonl") == [{"text": "a row"}]
    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        _read("http://evil.near.example/rows.jsonl")
    assert proxy.asked == []


def test_a_proxy_of_another_kind_is_named(install: Install) -> None:
    install(CLUSTER, {}, proxies={"ALL_PROXY": "socks5h://127.0.0.1:9"})

    for uri in ("http://data.example/x", "s3://bucket/x"):
        with pytest.raises(InvalidInput, match="socks5h://") as caught:
            _read(uri)
        assert caught.value.reason == "ProxyUnsupported"


# --- S3 --------------------------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Name an S3 service in the environment, as a Secret of a tenant's does."""
    pytest.importorskip("s3fs")

    def named(endpoint: str) -> None:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    return named


@pytest.mark.parametrize(
    "endpoint", ["http://169.254.169.254", "http://minio.minio.svc:9000", "http://10.0.0.1"]
)
def test_an_s3_service_of_the_inside_is_refused(
    endpoint: str, s3: Callable[[str], None], install: Install, connections: list[str]
) -> None:
    s3(endpoint)
    install(CLUSTER)

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        _read("s3://bucket/rows.jsonl")
    assert connections == []


def test_an_s3_service_whose_name_leads_inside_is_refused(
    s3: Callable[[str], None], install: Install, connections: list[str]
) -> None:
    s3("http://s3.example:9000")
    install(CLUSTER, {"s3.example": ["10.0.0.1"], "bucket.s3.example": ["10.0.0.1"]})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        _read("s3://bucket/rows.jsonl")
    assert connections == []


def test_an_s3_service_that_is_listed_is_asked(
    s3: Callable[[str], None], install: Install, server: Server
) -> None:
    s3(f"http://minio.minio.svc:{server.port}")
    policy = AddressPolicy(allowed_hosts=("minio.minio.svc",), allowed_networks=(LOOPBACK,))
    install(policy, {"minio.minio.svc": ["127.0.0.1"], "bucket.minio.minio.svc": ["127.0.0.1"]})

    for missing in (404, 403, 400):
        server.missing = missing
        with pytest.raises(HmiError) as caught:
            _read("s3://bucket/rows.jsonl")
        assert "SECRET-REASON" not in caught.value.message
    assert server.asked


def test_s3_goes_through_the_proxy(
    s3: Callable[[str], None], install: Install, proxy: RecordingProxy
) -> None:
    s3("http://s3.example")
    install(CLUSTER, {}, proxies={"HTTP_PROXY": proxy.url})

    with pytest.raises(HmiError):
        _read("s3://bucket/rows.jsonl")
    assert any("s3.example" in asked for asked in proxy.asked)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://hmi-control-plane.hmi-system.svc/metrics"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/credentials"),
    ],
)
def test_credentials_are_not_asked_of_the_inside(
    variable: str,
    value: str,
    s3: Callable[[str], None],
    install: Install,
    connections: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3("https://s3.example")
    monkeypatch.setenv(variable, value)
    install(CLUSTER, {})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        _read("s3://bucket/rows.jsonl")
    assert connections == []


# --- the hub ---------------------------------------------------------------------------------------


def _hub(guard: Guard) -> httpx2.Client:
    return httpx2.Client(transport=GuardedTransport(guard), follow_redirects=True, trust_env=False)


@pytest.mark.parametrize("uri", REFUSED_URLS)
def test_the_hubs_client_refuses_the_inside(uri: str, install: Install, connections: list[str]) -> None:
    with _hub(install(CLUSTER)) as client, pytest.raises((InvalidInput, httpx2.InvalidURL)):
        client.get(uri)
    assert connections == []


def test_the_hubs_client_follows_no_redirect_inside(
    install: Install, server: Server, connections: list[str]
) -> None:
    server.answers["/model"] = "http://169.254.169.254/latest"
    guard = install(_open_to_loopback(), {"hub.example": ["127.0.0.1"]})

    with _hub(guard) as client, pytest.raises(InvalidInput, match="AddressNotAllowed"):
        client.get(f"http://hub.example:{server.port}/model")
    assert set(connections) == {"127.0.0.1"}


def test_the_hubs_client_connects_to_the_checked_address_under_the_hubs_name(
    install: Install, certificate: trustme.LeafCert, secure_server: Server
) -> None:
    secure_server.answers["/model"] = b"weights"
    names = {"data.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    guard = install(_open_to_loopback(), names)

    with _hub(guard) as client:
        assert client.get(f"https://data.example:{secure_server.port}/model").content == b"weights"
        assert secure_server.asked == [(f"data.example:{secure_server.port}", "/model")]
        with pytest.raises(httpx2.ConnectError):  # the certificate is another's
            client.get(f"https://other.example:{secure_server.port}/model")


def test_the_hub_goes_through_the_proxy(install: Install, proxy: RecordingProxy) -> None:
    proxy.answers["http://hub.example/model"] = b"weights"
    guard = install(CLUSTER, {}, proxies={"http_proxy": proxy.url})

    with _hub(guard) as client:
        assert client.get("http://hub.example/model").content == b"weights"
    assert proxy.asked == ["GET http://hub.example/model"]


def test_the_hubs_library_uses_the_guarded_client(
    install: Install, connections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(CLUSTER, {httpx2.URL(huggingface_hub.constants.ENDPOINT).host: ["10.0.0.1"]})
    use_guarded_client()
    huggingface_hub.close_session()  # whatever an earlier test left
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    try:
        with pytest.raises(InvalidInput) as caught:
            resolve_base("hf://someone/never-downloaded")
        used = huggingface_hub.get_session()
        use_guarded_client()
        assert huggingface_hub.get_session() is used  # other threads may be downloading with it
    finally:
        huggingface_hub.close_session()

    assert caught.value.reason == "AddressNotAllowed"
    assert huggingface_hub.constants.HF_HUB_DISABLE_XET
    assert connections == []


# --- this process's guard --------------------------------------------------------------------------


def test_a_process_that_says_nothing_is_on_a_users_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    name_proxies(monkeypatch, {"HTTPS_PROXY": "http://p:1"})

    guard = guards.current_guard()

    assert guard.policy.own_machine
    assert guard.proxies.https == "http://p:1"
