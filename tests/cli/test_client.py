"""Every answer of a server becomes one sentence with a hint."""

import httpx
import pytest

from hmi_cli.client import Client, address_of
from hmi_cli.errors import EXIT_USAGE, ApiError, CliError


def answering(response: httpx.Response) -> Client:
    """Return a client whose server always answers the same."""
    return Client("http://127.0.0.1:1", "key", transport=httpx.MockTransport(lambda _: response))


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (httpx.Response(404, json={"error": {"message": "no such model"}}), "no such model (HTTP 404)"),
        (
            httpx.Response(422, json={"kind": "Status", "message": "spec is wrong"}),
            "spec is wrong (HTTP 422)",
        ),
        (httpx.Response(400, json={"detail": "bad"}), "bad (HTTP 400)"),
        (httpx.Response(502, text="<html>" + "x" * 1000), "<html>" + "x" * 194 + " (HTTP 502)"),
        (httpx.Response(500), "Internal Server Error (HTTP 500)"),
        (httpx.Response(500, json=["odd"]), "['odd'] (HTTP 500)"),
    ],
)
def test_errors_of_any_form_become_a_sentence(response: httpx.Response, says: str) -> None:
    with answering(response) as client, pytest.raises(ApiError) as caught:
        client.request("GET", "/")
    assert caught.value.message == says
    assert caught.value.status == response.status_code


def test_retry_after_becomes_a_hint() -> None:
    response = httpx.Response(503, json={"error": {"message": "loading"}}, headers={"Retry-After": "7"})
    with answering(response) as client, pytest.raises(ApiError) as caught:
        client.request("GET", "/")
    assert "7 s" in caught.value.hint


def test_another_kind_of_server_is_reported() -> None:
    with answering(httpx.Response(200, text="<html>")) as client, pytest.raises(CliError, match="JSON"):
        client.request("GET", "/")


@pytest.mark.parametrize("error", [httpx.ReadError, httpx.RemoteProtocolError])
def test_a_closed_connection_is_tried_again_where_that_is_safe(error: type[httpx.TransportError]) -> None:
    sent: list[str] = []

    def close_first(request: httpx.Request) -> httpx.Response:
        sent.append(request.method)
        if len(sent) == 1:
            raise error("the server disconnected", request=request)
        return httpx.Response(200, json={"one": 1})

    with Client("http://127.0.0.1:1", "key", transport=httpx.MockTransport(close_first)) as client:
        assert client.request("GET", "/") == {"one": 1}
        sent.clear()
        with pytest.raises(CliError):
            client.request("POST", "/")
    assert sent == ["POST"]


def test_an_unreachable_server_is_reported_with_a_hint() -> None:
    with Client("http://127.0.0.1:9", None) as client, pytest.raises(CliError) as caught:
        client.request("GET", "/")
    assert "hmi up" in caught.value.hint


@pytest.mark.parametrize("key", ["hmi_ключ", "hmi_1\n", "hmi 1", "hmi_\udce9"])
def test_an_invalid_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(CliError, match="the key contains the character") as caught:
        Client("http://127.0.0.1:9", key)
    assert caught.value.exit_code == EXIT_USAGE
    assert key not in caught.value.message
    assert "HMI_API_KEY" in caught.value.hint


def test_an_unknown_token_is_renewed_once() -> None:
    shown, renewals = [], iter(["second", "third"])

    def refuse(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers["authorization"])
        return httpx.Response(401)

    with (
        Client(
            "http://127.0.0.1:1",
            "first",
            renew=lambda: next(renewals),
            transport=httpx.MockTransport(refuse),
        ) as client,
        pytest.raises(ApiError),
    ):
        client.request("GET", "/")
    assert shown == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("localhost:8080/", "http://localhost:8080"),
        ("hmi.example", "http://hmi.example"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("https://hmi.example/", "https://hmi.example"),
    ],
)
def test_http_is_the_default_scheme(typed: str, meant: str) -> None:
    assert address_of(typed) == meant


@pytest.mark.parametrize("typed", ["ftp://hmi.example", "http://", "http://hmi.example:port", "ho\tst"])
def test_an_invalid_address_is_refused(typed: str) -> None:
    with pytest.raises(CliError, match="no address of a server") as caught:
        address_of(typed)
    assert caught.value.exit_code == EXIT_USAGE
