"""Error responses in the format of OpenAI or of the Open Inference Protocol; never a traceback."""

import logging
from http import HTTPStatus

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from hmi_api.errors import HmiError, InvalidInput, NotReady, error_body
from hmi_control_plane.http.validation_errors import first_request_error

log = logging.getLogger(__name__)


class NotFound(HmiError):
    """It does not exist, or belongs to another tenant: the same answer, so that nothing is disclosed."""


class Conflict(HmiError):
    """The request contradicts the current state."""


class Unauthorized(HmiError):
    """The request has no valid credential."""


class Forbidden(HmiError):
    """The caller is authenticated and not allowed to do this."""


class RequestFailed(HmiError):
    """A request failed with HTTP ``status``; ``param`` names the invalid field.

    ``retry_after`` is in seconds; None where a retry does not help.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(reason, escape_surrogates(message))
        self.status = status
        self.param = param and escape_surrogates(param)
        self.retry_after = retry_after


_STATUS_OF: dict[type[HmiError], int] = {
    InvalidInput: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    NotReady: 503,
}
_TYPE_OF = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_REASON_OF = {408: "BodyTooSlow", 413: "BodyTooLarge"}
_RETRY_AFTER_SECONDS = 1
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def status_of(error: HmiError) -> int:
    """Return the HTTP status of an error; 500 for a type that is not mapped."""
    if isinstance(error, RequestFailed):
        return error.status
    return next((status for kind, status in _STATUS_OF.items() if isinstance(error, kind)), 500)


def error_kind(status: int) -> str:
    """Return OpenAI's error ``type`` for an HTTP status."""
    return _TYPE_OF.get(status, "invalid_request_error" if status < 500 else "server_error")


def escape_surrogates(text: str) -> str:
    """Return ``text`` with lone surrogates escaped: JSON can contain them, UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_response(
    path: str,
    status: int,
    reason: str,
    message: str,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return an error response in the format of the protocol that ``path`` belongs to.

    Under ``/v2`` that is the Open Inference Protocol's (one text), elsewhere OpenAI's, whose
    ``code`` is ``reason``.
    """
    message = escape_surrogates(message)
    if path == "/v2" or path.startswith("/v2/"):
        return JSONResponse({"error": message}, status, headers=headers)
    body = error_body(message, error_kind(status), param=param and escape_surrogates(param), code=reason)
    return JSONResponse(body, status, headers=headers)


def hmi_error_response(path: str, error: HmiError) -> JSONResponse:
    """Return the response to a request for ``path`` that raised ``error``."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    param = None
    if isinstance(error, RequestFailed):
        param = error.param
        if error.retry_after is not None:
            headers["Retry-After"] = str(error.retry_after)
    return error_response(path, status, error.reason, error.message, param=param, headers=headers)


def refuse_body(status: int, message: str) -> HTTPException:
    """Return the exception for a body that is refused; FastAPI passes no other type through unchanged.

    The connection is closed: otherwise the rest of the body would have to be read to find the next request.
    """
    return HTTPException(status, message, headers={"Connection": "close"})


def install_error_handlers(app: FastAPI) -> None:
    """Make ``app`` answer every error in the documented format."""
    app.add_exception_handler(HmiError, _on_hmi_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for kind in _DATABASE_ERRORS:
        app.add_exception_handler(kind, _on_database_error)
    app.add_exception_handler(Exception, _on_unexpected)


def _on_hmi_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HmiError)  # noqa: S101 -- the handler is registered for this type
    return hmi_error_response(_path(request), error)


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    path = _path(request)
    if any(problem["type"] == "json_invalid" for problem in error.errors()):
        return error_response(path, 400, "MalformedJson", "The body is not valid JSON.")
    if isinstance(error.body, bytes):  # FastAPI parses a body only if its Content-Type is JSON
        return error_response(
            path, 415, "UnsupportedMediaType", "Send the body with Content-Type: application/json."
        )
    first = first_request_error(error)
    more = f" ({first.others} more.)" if first.others else ""
    return error_response(path, 422, "InvalidField", first.message + more, param=first.field)


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    phrase = HTTPStatus(error.status_code).phrase
    message = error.detail if error.detail != phrase else f"{phrase}."
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    reason = _REASON_OF.get(error.status_code, phrase.title().replace(" ", ""))
    return error_response(_path(request), error.status_code, reason, message, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes that match the path; Starlette reports only the first route's."""
    routes = request.app.router.routes
    allowed = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["HEAD", *allowed] if "GET" in allowed else allowed


def _path(request: Request) -> str:
    path: str = request.scope["path"]
    return path


_UNAVAILABLE = RequestFailed(503, "DatabaseUnavailable", "The catalog database did not answer; try again.")
_DATABASE_ERRORS: dict[type[Exception], RequestFailed] = {
    # The types of hmi_api.internal.storable normally refuse such values earlier, by field. Retries fail.
    DataError: RequestFailed(
        422,
        "ValueNotStorable",
        "A value cannot be stored: it contains a NUL, is too long or too large.",
    ),
    IntegrityError: RequestFailed(
        409,
        "ConcurrentWrite",
        "Another request wrote the same record at the same time; try again.",
    ),
    OperationalError: _UNAVAILABLE,
    PoolTimeoutError: _UNAVAILABLE,
}
"""The error response by the error of the database."""


def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    failure = next(found for kind, found in _DATABASE_ERRORS.items() if isinstance(error, kind))
    level = logging.ERROR if failure is _UNAVAILABLE else logging.WARNING
    log.log(level, "%s %s: %s", request.method, request.url.path, failure.reason, exc_info=error)
    return hmi_error_response(_path(request), failure)


def _on_unexpected(request: Request, _error: Exception) -> JSONResponse:
    # Starlette sends this response outside the middleware that sets the header; the server logs the error.
    request_id = correlation_id.get()
    headers = {"X-Request-Id": request_id} if request_id else None
    return error_response(
        _path(request),
        500,
        "InternalError",
        "An internal error occurred; report the X-Request-Id to the operator.",
        headers=headers,
    )
