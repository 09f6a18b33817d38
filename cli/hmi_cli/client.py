"""The HTTP client of the command; it turns every failure into an error message with a hint."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from hmi_api.errors import InvalidInput
from hmi_api.security.address_policy import ip_of
from hmi_api.security.proxies import Proxies
from hmi_cli.errors import ApiError, CliError, UsageError, print_warning

TIMEOUT_S = 30.0
_WARNING = re.compile(r'299 \S+ ("(?:[^"\\]|\\.)*")')
"""A Warning header, as API servers write them."""


class Client:
    """Calls one HMI server with one bearer token. Raises ``CliError`` for every failure.

    If the server answers 401, ``renew`` is called once for another token. A server on this machine is called
    directly, others through the proxy of the environment.
    """

    def __init__(
        self,
        server: str,
        token: str | None,
        *,
        renew: Callable[[], str] | None = None,
        transport: httpx.BaseTransport | None = None,
        on_this_machine: bool = False,
    ) -> None:
        self.server = server.rstrip("/")
        self._renew = renew
        self._http = httpx.Client(
            base_url=self.server,
            headers=_authorization(token),
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=False,
            proxy=None if on_this_machine or is_local(server) else proxy_of(server),
            verify=httpx.create_ssl_context(trust_env=True),  # SSL_CERT_FILE is honoured
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the JSON object of the answer, without fields if the answer is empty."""
        response = self._send(method, path, **request)
        if response.status_code == HTTPStatus.UNAUTHORIZED and self._renew:
            renew, self._renew = self._renew, None
            self._http.headers.update(_authorization(renew()))
            response = self._send(method, path, **request)
        if response.is_error:
            raise api_error(response)
        try:
            answer = response.json() if response.content else {}
        except (ValueError, RecursionError) as error:
            raise self._not_hmi(path) from error
        if not isinstance(answer, dict):
            raise self._not_hmi(path)
        return answer

    def _not_hmi(self, path: str) -> CliError:
        return CliError(
            f"{self.server}{path} did not answer with a JSON object", hint="is this an HMI server?"
        )

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._request(method, path, **request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        for text in _WARNING.findall(response.headers.get("warning", "")):
            print_warning(json.loads(text))
        return response

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **request)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            # A server may close an idle connection at the moment at which a request is sent on it.
            if method != "GET":
                raise
            return self._http.request(method, path, **request)

    def lines(self, path: str, **request: Any) -> Iterator[Any]:
        """Yield the JSON lines of an answer without end."""
        try:
            with self._http.stream(
                "GET", path, timeout=httpx.Timeout(TIMEOUT_S, read=None), **request
            ) as response:
                if response.is_error:
                    response.read()
                    raise api_error(response)
                for line in response.iter_lines():
                    if line:
                        yield json.loads(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        except json.JSONDecodeError as error:
            raise self._not_hmi(path) from error

    def _unreachable(self, error: httpx.HTTPError) -> CliError:
        if isinstance(error, httpx.TimeoutException):
            return CliError(f"{self.server} took longer than {TIMEOUT_S:.0f} s to answer", hint="try again")
        return CliError(
            f"no HMI server answers at {self.server}",
            hint="start one with `hmi up`, or name yours with --server or HMI_SERVER",
        )


def address_of(server: str) -> str:
    """Return a server's address; http:// is the default scheme. Raise ``UsageError`` if it is invalid."""
    address = (server if "://" in server else f"http://{server}").rstrip("/")
    with contextlib.suppress(httpx.InvalidURL, ValueError):
        url = httpx.URL(address)
        if url.scheme in ("http", "https") and url.host and urlsplit(address):
            return address
    raise UsageError(f'"{server}" is no address of a server', hint="give one such as http://127.0.0.1:8080")


def path_part(name: str) -> str:
    """Return a name as one segment of a path; `..` and `/` are escaped."""
    escaped = quote(name, safe="")
    return escaped if name.strip(".") else escaped.replace(".", "%2E")


def _authorization(token: str | None) -> dict[str, str]:
    """Return the Authorization header. The error for an invalid token does not contain it."""
    invalid = next((character for character in token or "" if not "!" <= character <= "~"), None)
    if invalid is not None:
        raise UsageError(
            f"the key contains the character {invalid!r}, which no key contains",
            hint="copy it again; keys come from --key, HMI_API_KEY, --admin-key and HMI_ADMIN_KEY",
        )
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_local(server: str) -> bool:
    """Return whether a server is on this machine, which is called without a proxy."""
    host = urlsplit(server).hostname or ""
    address = ip_of(host)
    return host == "localhost" or (address is not None and (address.is_loopback or address.is_unspecified))


def proxy_of(server: str) -> str | None:
    """Return the environment's proxy for a server. Raise ``UsageError`` if it cannot be used."""
    try:
        return Proxies.from_environment().for_url(server)
    except InvalidInput as error:
        raise UsageError(error.message) from error


def api_error(response: httpx.Response) -> ApiError:
    """Return the error of a 4xx or 5xx answer, whatever the form of its body."""
    message = _message(response) or response.reason_phrase or "no reason given"
    hint = ""
    if response.status_code in (401, 403):
        hint = "the key is not valid for this; see --home, HMI_ADMIN_KEY and --key"
    elif response.status_code in (429, 503) and (seconds := response.headers.get("retry-after")):
        hint = f"try again in {seconds} s"
    return ApiError(message, response.status_code, hint=hint)


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return response.text.strip()[:200]
    if not isinstance(body, dict):
        return str(body)[:200]
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("message", ""))
    return str(body.get("message") or body.get("detail") or "")
