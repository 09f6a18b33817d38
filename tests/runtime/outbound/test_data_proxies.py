"""Data through the proxies that the environment names."""

import ssl

import pytest
from recording_proxy import RecordingProxy
from support_outbound import CLUSTER, REFUSED_URLS, ROW, Install, Server, open_to_loopback, read_all

from hmi_api.errors import InvalidInput


def test_http_data_is_read_through_the_proxy(install: Install, proxy: RecordingProxy) -> None:
    proxy.answers["http://data.example/rows.jsonl"] = ROW
    host = proxy.url.replace("127.0.0.1", "proxy.example").replace("http://", "http://user:word@")
    install(CLUSTER, {"proxy.example": ["127.0.0.1"]}, proxies={"HTTP_PROXY": host})

    assert read_all("http://data.example/rows.jsonl") == [{"text": "a row"}]
    assert "GET http://data.example/rows.jsonl" in proxy.requests
    assert set(proxy.credentials) == {"Basic dXNlcjp3b3Jk"}


def test_https_data_is_read_through_a_tunnel_of_the_proxy(
    install: Install, proxy: RecordingProxy, secure_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiohttp import connector

    trusting = ssl.create_default_context()
    monkeypatch.setattr(connector, "_SSL_CONTEXT_VERIFIED", trusting)
    secure_server.answers["/rows.jsonl"] = ROW
    proxy.tunnels["data.example:443"] = ("127.0.0.1", secure_server.port)
    install(CLUSTER, {}, proxies={"HTTPS_PROXY": proxy.url})

    assert read_all("https://data.example/rows.jsonl") == [{"text": "a row"}]
    assert set(proxy.requests) == {"CONNECT data.example:443"}


@pytest.mark.parametrize("uri", REFUSED_URLS)
def test_internal_addresses_are_not_requested_through_a_proxy(
    uri: str, install: Install, proxy: RecordingProxy
) -> None:
    install(CLUSTER, {}, proxies={"ALL_PROXY": proxy.url})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        read_all(uri)
    assert proxy.requests == []


def test_hosts_in_no_proxy_are_still_checked(install: Install, proxy: RecordingProxy, server: Server) -> None:
    server.answers["/rows.jsonl"] = ROW
    install(
        open_to_loopback(),
        {"near.example": ["127.0.0.1"], "evil.near.example": ["10.0.0.1"]},
        proxies={"ALL_PROXY": proxy.url, "NO_PROXY": "near.example"},
    )

    assert read_all(f"http://near.example:{server.port}/rows.jsonl") == [{"text": "a row"}]
    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        read_all("http://evil.near.example/rows.jsonl")
    assert proxy.requests == []


def test_an_unsupported_kind_of_proxy_is_named(install: Install) -> None:
    install(CLUSTER, {}, proxies={"ALL_PROXY": "socks5h://127.0.0.1:9"})

    for uri in ("http://data.example/x", "s3://bucket/x"):
        with pytest.raises(InvalidInput, match="socks5h://") as caught:
            read_all(uri)
        assert caught.value.reason == "ProxyUnsupported"
