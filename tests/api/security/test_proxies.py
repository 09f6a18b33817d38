"""The proxy for an address; HMI's own parts use none for each other."""

import ast
import contextlib
import json
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from recording_proxy import RecordingProxy, name_proxies, recording_proxy

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.client import ONE_ATTEMPT, ControlPlaneClient
from hmi_api.security.bearer import TokenSource
from hmi_api.security.internal_auth import ServiceAccounts, TokenReviewer
from hmi_api.security.proxies import Proxies, s3_proxies
from hmi_cli.client import Client, is_local
from hmi_cli.context import CommandContext
from hmi_cli.errors import CliError
from hmi_cli.system.home import HomeFolder
from hmi_control_plane.gateway.runtime_client import HttpConnections
from hmi_operator.kubernetes.client import connect
from hmi_operator.kubernetes.handlers import build_settings
from hmi_runtime.training.cli import main as train

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "token-of-the-tests"


# --- the choice ------------------------------------------------------------------------------------

HTTP, HTTPS = "http://data.example/x", "https://data.example/x"
CHOICES = [
    ({"http_proxy": "http://p:1"}, HTTP, "http://p:1"),
    ({"HTTP_PROXY": "http://p:1"}, HTTP, "http://p:1"),
    ({"http_proxy": "http://small:1", "HTTP_PROXY": "http://capital:1"}, HTTP, "http://small:1"),
    ({"http_proxy": "", "HTTP_PROXY": "http://capital:1"}, HTTP, None),
    ({"http_proxy": "http://p:1"}, HTTPS, None),
    ({"HTTPS_PROXY": "http://p:1"}, HTTPS, "http://p:1"),
    ({"https_proxy": "https://p:1"}, HTTPS, "https://p:1"),
    ({"ALL_PROXY": "http://p:1"}, HTTP, "http://p:1"),
    ({"all_proxy": "http://p:1"}, HTTPS, "http://p:1"),
    ({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://own:1"}, HTTPS, "http://own:1"),
    ({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": ""}, HTTPS, None),
    ({"HTTPS_PROXY": "p:3128"}, HTTPS, "http://p:3128"),
    ({"HTTPS_PROXY": "http://user:word@p:3128/\n"}, HTTPS, "http://user:word@p:3128/"),
    ({"ALL_PROXY": "socks5h://p:1", "NO_PROXY": "data.example"}, HTTPS, None),
    ({}, HTTPS, None),
    ({}, "http://data.example:99999/rows", None),
    ({"https_proxy": "http://p:1"}, "http://data.example:port/rows", None),
]


@pytest.mark.parametrize(("variables", "url", "proxy"), CHOICES)
def test_the_proxy_is_the_one_that_curl_uses(variables: dict[str, str], url: str, proxy: str | None) -> None:
    assert Proxies.from_environment(variables).for_url(url) == proxy


EXCEPTIONS = [
    ("*", "http://anything/", True),
    ("example.com", "http://example.com/", True),
    ("example.com", "http://EXAMPLE.com./", True),
    ("EXAMPLE.com", "http://a.b.example.com/", True),
    (".example.com", "http://a.example.com/", True),
    (".example.com", "http://example.com/", True),
    ("*.example.com", "http://a.example.com/", True),
    ("example.com", "http://notexample.com/", False),
    ("example.com", "http://example.com.evil/", False),
    ("a, b.example ,c", "http://b.example/", True),
    ("a b.example", "http://b.example/", True),
    ("example.com:8080", "http://example.com:8080/", True),
    ("example.com:8080", "http://example.com/", False),
    ("example.com:443", "https://example.com/", True),
    ("10.0.0.0/8", "http://10.1.2.3:9000/", True),
    ("10.0.0.0/8", "http://11.1.2.3/", False),
    ("10.1.2.3", "http://10.1.2.3/", True),
    ("10.1.2.3:9000", "http://10.1.2.3:9000/", True),
    ("10.0.0.0/8", "http://ten.example/", False),
    ("fd00::/8", "http://[fd12::1]/", True),
    ("[fd12::1]:80", "http://[fd12::1]/", True),
    ("::1", "http://[::1]/", True),
    ("10.0.0.0/99", "http://10.0.0.1/", False),
    ("", "http://example.com/", False),
    (",,", "http://example.com/", False),
]


@pytest.mark.parametrize(("entries", "url", "is_exception"), EXCEPTIONS)
@pytest.mark.parametrize("spelling", ["no_proxy", "NO_PROXY"])
def test_exceptions_are_names_domains_addresses_and_blocks(
    entries: str, url: str, is_exception: bool, spelling: str
) -> None:
    found = Proxies.from_environment({"all_proxy": "http://p:1", spelling: entries}).for_url(url)

    assert (found is None) == is_exception


def test_a_proxy_that_cannot_be_used_is_refused_without_its_password() -> None:
    proxies = Proxies.from_environment({"ALL_PROXY": "socks5h://user:password@p:1080"})

    with pytest.raises(InvalidInput, match=r"socks5h://.*HTTPS_PROXY.*NO_PROXY") as caught:
        proxies.for_url(HTTPS)

    assert caught.value.reason == "ProxyUnsupported"
    assert "password" not in caught.value.message


def test_s3_uses_the_proxy_for_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://10.0.0.5:9000")
    proxies = Proxies.from_environment({"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"})
    assert s3_proxies(proxies) == {}

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.example.com")
    assert s3_proxies(proxies) == {"https": "http://p:1"}


# --- HMI's own calls -------------------------------------------------------------------------------


class Part:
    """Another part of HMI, on loopback: answers everything with 404; records the requests."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        part = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                part.requests.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = json.dumps({"error": {"code": "NotFound", "message": "no"}}).encode()
                self.send_response(404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_GET  # noqa: N815 -- names of http.server's

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def part() -> Iterator[Part]:
    made = Part()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def proxy() -> Iterator[RecordingProxy]:
    with recording_proxy() as made:
        yield made


async def _token_review(url: str) -> None:
    reviewer = TokenReviewer(url, TokenSource("own"), ServiceAccounts(), "hmi")
    try:
        await reviewer.authenticate("token")
    finally:
        await reviewer.close()


async def _operator(url: str) -> None:
    async with ControlPlaneClient(url, TOKEN) as client:
        await client.run("r1")


async def _api_server(url: str) -> None:
    context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "contexts": [context],
        "users": [{"name": "test", "user": {"token": "t"}}],
        "current-context": "test",
    }
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        (Path(folder) / "kubeconfig").write_text(yaml.safe_dump(config))
        patch.setenv("KUBECONFIG", str(Path(folder) / "kubeconfig"))
        async with connect() as client:
            await client.core.read_namespace("shop")


async def _runtime(url: str) -> None:
    async with ControlPlaneClient(url, TOKEN, retry=ONE_ATTEMPT) as client:
        await client.desired_state("runtime-0", 0, 0)


async def _gateway(url: str) -> None:
    network = HttpConnections()
    try:
        await network.post(f"{url}/internal/v1/infer", TOKEN, b"{}")
    finally:
        await network.close()


INNER: dict[str, Callable[[str], Awaitable[None]]] = {
    "token review": _token_review,
    "operator to control plane": _operator,
    "operator to API server": _api_server,
    "runtime to control plane": _runtime,
    "gateway to runtime": _gateway,
}


@pytest.fixture(params=["http", "socks"])
def unused_proxy(
    request: pytest.FixtureRequest, proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A proxy in the environment that no call may use."""
    http = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), proxy.url)
    name_proxies(monkeypatch, http if request.param == "http" else {"ALL_PROXY": "socks5h://127.0.0.1:9"})
    yield
    assert proxy.requests == []


@pytest.mark.anyio
@pytest.mark.usefixtures("unused_proxy")
@pytest.mark.parametrize("caller", INNER)
async def test_internal_calls_use_no_proxy(caller: str, part: Part) -> None:
    with contextlib.suppress(HmiError, httpx.HTTPStatusError):  # the part has nothing to say
        await INNER[caller](part.url)

    assert part.requests


@pytest.mark.usefixtures("unused_proxy")
def test_a_trainer_uses_no_proxy_for_the_control_plane(
    part: Part, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "HMI_CONTROL_PLANE_URL": part.url,
        "HMI_INTERNAL_TOKEN": TOKEN,
        "HMI_RUN_ID": "r1",
        "HMI_WORK_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)

    assert train(["domain"]) == 1  # the control plane knows no such run

    assert part.requests == ["GET /internal/v1/runs/r1"]


@pytest.mark.usefixtures("unused_proxy")
def test_the_command_uses_no_proxy_for_this_machine(part: Part, tmp_path: Path) -> None:
    home = HomeFolder(tmp_path)
    home.create()
    home.write_url(part.url)

    for session in (
        CommandContext(home, None, "key"),
        CommandContext(HomeFolder(tmp_path / "other"), part.url, "key"),
    ):
        with session.admin() as client, pytest.raises(CliError):
            client.request("GET", "/v1/models")

    assert part.requests == ["GET /v1/models"] * 2


def test_a_server_is_on_this_machine_in_every_spelling() -> None:
    for host in ("127.0.0.1", "127.0.1.1", "localhost", "[::1]", "0.0.0.0", "[::]"):  # noqa: S104
        assert is_local(f"http://{host}:8080"), host
    for host in ("hmi.example.com", "10.0.0.1", "[fd00::1]"):
        assert not is_local(f"http://{host}:8080"), host


def test_the_command_uses_the_proxy_for_another_machine(
    proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_proxies(monkeypatch, {"http_proxy": proxy.url, "no_proxy": "near.example"})
    proxy.answers["http://hmi.example/v1/models"] = b'{"data": []}'
    with Client("http://hmi.example", "key") as client:
        assert client.request("GET", "/v1/models") == {"data": []}
    assert proxy.requests == ["GET http://hmi.example/v1/models"]

    name_proxies(monkeypatch, {"ALL_PROXY": "socks5h://127.0.0.1:9"})
    with pytest.raises(CliError, match="socks5h://"):
        Client("https://hmi.example", "key")


def test_watches_use_no_proxy() -> None:
    assert build_settings().networking.trust_env is False


# --- every client of HMI's -------------------------------------------------------------------------

CODE = ("crds", "operator", "control_plane", "runtime", "cli", "benchmarks", "helm/hmi/files", "examples")
CLIENTS = {
    "httpx": {"Client", "AsyncClient", "request", "stream", "get", "post", "put", "patch", "delete", "head"},
    "httpx2": {"Client", "AsyncClient", "HTTPTransport", "AsyncHTTPTransport", "get", "post", "stream"},
    "aiohttp": {"ClientSession", "request"},
}
OUTER_LIBRARIES = {
    "fsspec": {"open", "open_files", "url_to_fs", "get_mapper", "filesystem", "get_fs_token_paths"}
}
OPENED_AS_OUTER = {
    "crds/hmi_api/artifact_root.py",  # proxies as of `s3_proxies`
    "runtime/hmi_runtime/outbound/clients.py",  # through the guard
}
READS_THE_ENVIRONMENT_FOR_CERTIFICATES = {"runtime/hmi_runtime/outbound/clients.py"}
NOT_USED = {"requests", "urllib3", "urllib.request", "http.client", "s3fs", "boto3", "websockets", "pycurl"}


def _files() -> Iterator[tuple[str, ast.Module]]:
    for folder in CODE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def _calls(tree: ast.Module) -> Iterator[tuple[str, str, ast.Call]]:
    """Give every call of ``module.function(...)``, and of names imported from a module."""
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in imported:
            module, name = imported[called.id]
            yield module.partition(".")[0], name, node
        elif isinstance(called, ast.Attribute):
            inner: Any = called.value
            while isinstance(inner, ast.Attribute):
                inner = inner.value
            if isinstance(inner, ast.Name):
                yield inner.id, called.attr, node


def test_every_http_client_leaves_the_environment_alone() -> None:
    found = []
    for file, tree in _files():
        for module, name, call in _calls(tree):
            if name in CLIENTS.get(module, ()):
                trusted = next((k.value for k in call.keywords if k.arg == "trust_env"), None)
                found.append(file)
                if file not in READS_THE_ENVIRONMENT_FOR_CERTIFICATES:
                    assert isinstance(trusted, ast.Constant), f"{file}:{call.lineno} gives no trust_env"
                    assert trusted.value is False, f"{file}:{call.lineno} trusts the environment"
    assert len(found) > 10


def test_addresses_are_opened_in_two_places_only() -> None:
    opened = {
        file
        for file, tree in _files()
        for module, name, _ in _calls(tree)
        if name in OUTER_LIBRARIES.get(module, ())
    }

    assert opened == OPENED_AS_OUTER


def test_no_other_http_client_is_used() -> None:
    for file, tree in _files():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not NOT_USED.intersection(names), f"{file} imports {names}"
