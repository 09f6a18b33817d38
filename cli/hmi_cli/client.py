"""Talking to the server: one HTTP client that turns every failure into a sentence."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from hmi_cli.errors import CliError, Refused

TIMEOUT_S = 30.0


class Client:
    """Asks one HMI server with one bearer token; raises ``CliError`` for whatever is not a success."""

    def __init__(
        self, server: str, token: str | None, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.server = server.rstrip("/")
        self._http = httpx.Client(
            base_url=self.server,
            headers=headers,
            timeout=TIMEOUT_S,
            transport=transport,
            trust_env=not is_local(server),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """Send a request and return its JSON, or None where the answer is empty."""
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise refusal(response)
        if not response.content:
            return None
        try:
            return response.json()
        except json.JSONDecodeError as error:
            raise CliError(
                f"{self.server}{path} did not answer in JSON", hint="is this an HMI server?"
            ) from error

    def lines(self, path: str, **request: Any) -> Iterator[Any]:
        """Yield the JSON lines of an answer that goes on until either side ends it."""
        try:
            with self._http.stream(
                "GET", path, timeout=httpx.Timeout(TIMEOUT_S, read=None), **request
            ) as response:
                if response.is_error:
                    response.read()
                    raise refusal(response)
                for line in response.iter_lines():
                    if line:
                        yield json.loads(line)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> CliError:
        if isinstance(error, httpx.TimeoutException):
            return CliError(f"{self.server} took longer than {TIMEOUT_S:.0f} s to answer", hint="try again")
        return CliError(
            f"no HMI server answers at {self.server}",
            hint="start one with `hmi up`, or name yours with --server or HMI_SERVER",
        )


def is_local(server: str) -> bool:
    """Say whether a server is on this machine, where no proxy has a place."""
    return urlsplit(server).hostname in ("127.0.0.1", "localhost", "::1")


def refusal(response: httpx.Response) -> Refused:
    """Return the error that an answer of 4xx or 5xx stands for, whichever shape its body has."""
    message = _message(response) or response.reason_phrase or "no reason given"
    hint = ""
    if response.status_code in (401, 403):
        hint = "the key does not open this; see --home, HMI_ADMIN_KEY and --key"
    elif response.status_code in (429, 503) and (seconds := response.headers.get("retry-after")):
        hint = f"try again in {seconds} s"
    return Refused(message, response.status_code, hint=hint)


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text.strip()[:200]
    if not isinstance(body, dict):
        return str(body)[:200]
    error = body.get("error")
    if isinstance(error, dict):
        return str(error.get("message", ""))
    return str(body.get("message") or body.get("detail") or "")
