"""The client of the model hub connects only through the guard."""

import httpx2
import huggingface_hub
import pytest
import trustme
from recording_proxy import RecordingProxy
from support_outbound import CLUSTER, REFUSED_URLS, Install, Server, open_to_loopback

from hmi_api.errors import InvalidInput
from hmi_runtime.models.source import resolve_base
from hmi_runtime.outbound.clients import GuardedTransport, use_guarded_client
from hmi_runtime.outbound.guard import Guard


def _hub(guard: Guard) -> httpx2.Client:
    return httpx2.Client(transport=GuardedTransport(guard), follow_redirects=True, trust_env=False)


@pytest.mark.parametrize("uri", REFUSED_URLS)
def test_the_hubs_client_refuses_internal_addresses(
    uri: str, install: Install, connections: list[str]
) -> None:
    with _hub(install(CLUSTER)) as client, pytest.raises((InvalidInput, httpx2.InvalidURL)):
        client.get(uri)
    assert connections == []


def test_the_hubs_client_follows_no_redirect_to_an_internal_address(
    install: Install, server: Server, connections: list[str]
) -> None:
    server.answers["/model"] = "http://169.254.169.254/latest"
    guard = install(open_to_loopback(), {"hub.example": ["127.0.0.1"]})

    with _hub(guard) as client, pytest.raises(InvalidInput, match="AddressNotAllowed"):
        client.get(f"http://hub.example:{server.port}/model")
    assert set(connections) == {"127.0.0.1"}


def test_the_hubs_client_connects_to_the_checked_address_and_checks_the_certificate(
    install: Install, certificate: trustme.LeafCert, secure_server: Server
) -> None:
    secure_server.answers["/model"] = b"weights"
    names = {"data.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]}
    guard = install(open_to_loopback(), names)

    with _hub(guard) as client:
        assert client.get(f"https://data.example:{secure_server.port}/model").content == b"weights"
        assert secure_server.requests == [(f"data.example:{secure_server.port}", "/model")]
        with pytest.raises(httpx2.ConnectError):  # the certificate is for another name
            client.get(f"https://other.example:{secure_server.port}/model")


def test_the_hub_is_called_through_the_proxy(install: Install, proxy: RecordingProxy) -> None:
    proxy.answers["http://hub.example/model"] = b"weights"
    guard = install(CLUSTER, {}, proxies={"http_proxy": proxy.url})

    with _hub(guard) as client:
        assert client.get("http://hub.example/model").content == b"weights"
    assert proxy.requests == ["GET http://hub.example/model"]


def test_the_hubs_library_uses_the_guarded_client(
    install: Install, connections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(CLUSTER, {httpx2.URL(huggingface_hub.constants.ENDPOINT).host: ["10.0.0.1"]})
    use_guarded_client()
    huggingface_hub.close_session()  # of an earlier test
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
