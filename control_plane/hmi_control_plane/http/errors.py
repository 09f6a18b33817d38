"""Error answers, in OpenAI's shape or the Open Inference Protocol's; never a traceback."""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from hmi_api.errors import HmiError, InvalidInput, NotReady, error_body
from hmi_control_plane.http.validation_errors import first_request_problem

log = logging.getLogger(__name__)


class NotFound(HmiError):
    """No such thing, or not the caller's: the answer is the same, so that nothing is disclosed."""


class Conflict(HmiError):
    """The request contradicts what is there."""


class Unauthorized(HmiError):
    """The caller has not shown who it is."""


class Forbidden(HmiError):
    """The caller is known and may not do this."""


class RequestFailed(HmiError):
    """A request has no answer: ``status`` is HTTP's, ``param`` the field at fault.

    ``retry_after`` is in seconds, where trying again later may help.
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
        super().__init__(reason, sendable(message))
        self.status = status
        self.param = param and sendable(param)
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
_ASKED_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def status_of(error: HmiError) -> int:
    """Return the HTTP status that a user's error becomes; 500 for what is no fault of theirs."""
    if isinstance(error, RequestFailed):
        return error.status
    return next((status for kind, status in _STATUS_OF.items() if isinstance(error, kind)), 500)


def error_kind(status: int) -> str:
    """Return OpenAI's ``type`` of an error with this status."""
    return _TYPE_OF.get(status, "invalid_request_error" if status < 500 else "server_error")


def sendable(text: str) -> str:
    """Return ``text`` with what UTF-8 cannot hold escaped: JSON may bring halves of surrogate pairs."""
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
    """Return the answer in the shape of the protocol that ``path`` belongs to.

    It is OpenAI's, with ``reason`` as its ``code``; under ``/v2`` the Open Inference Protocol's: one text.
    """
    message = sendable(message)
    if path == "/v2" or path.startswith("/v2/"):
        return JSONResponse({"error": message}, status, headers=headers)
    body = error_body(message, error_kind(status), param=param and sendable(param), code=reason)
    return JSONResponse(body, status, headers=headers)


def hmi_error_response(path: str, error: HmiError) -> JSONResponse:
    """Return the answer to a request for ``path`` that ended in ``error``."""
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
    """Return what the reader of a body raises: FastAPI lets no other error through as it is.

    The connection is closed, since the rest of the body would have to be read to find the next request.
    """
    return HTTPException(status, message, headers={"Connection": "close"})


def install(app: FastAPI) -> None:
    """Make ``app`` answer every error in the one shape."""
    app.add_exception_handler(HmiError, _on_hmi_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(DataError, _on_data_error)
    app.add_exception_handler(IntegrityError, _on_integrity_error)
    app.add_exception_handler(OperationalError, _on_database_away)
    app.add_exception_handler(PoolTimeoutError, _on_database_away)
    app.add_exception_handler(Exception, _on_unexpected)


def _on_hmi_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HmiError)  # noqa: S101 -- the handler is registered for this type
    return hmi_error_response(_path(request), error)


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    path = _path(request)
    if any(problem["type"] == "json_invalid" for problem in error.errors()):
        return error_response(path, 400, "MalformedJson", "The body is not valid JSON.")
    if isinstance(error.body, bytes):  # FastAPI parses no body that is not called JSON
        return error_response(
            path, 415, "NotCalledJson", "Send the body with Content-Type: application/json."
        )
    problem = first_request_problem(error)
    more = f" ({problem.others} more.)" if problem.others else ""
    return error_response(path, 422, "InvalidField", problem.message + more, param=problem.where)


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
    """Return the methods of all routes of the request's path; Starlette tells those of the first one."""
    routes = request.app.router.routes
    allowed = [
        method
        for method in _ASKED_METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["HEAD", *allowed] if "GET" in allowed else allowed


def _path(request: Request) -> str:
    path: str = request.scope["path"]
    return path


def _on_data_error(request: Request, error: Exception) -> JSONResponse:
    # The types of hmi_api.internal.storable refuse such values first, by field. Sending them again would not
    # help.
    log.warning("%s %s: a value cannot be stored", request.method, request.url.path, exc_info=error)
    return error_response(
        _path(request),
        422,
        "ValueNotStorable",
        "A value cannot be stored: it holds a NUL, is too long or too large.",
    )


def _on_integrity_error(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s lost a race or broke a constraint", request.method, request.url.path, exc_info=error)
    return error_response(
        _path(request),
        409,
        "ConcurrentWrite",
        "Another request wrote the same thing at the same moment; try again.",
    )


def _on_database_away(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s: the database did not answer", request.method, request.url.path, exc_info=error)
    return error_response(
        _path(request),
        503,
        "DatabaseUnavailable",
        "The catalog database did not answer; try again.",
        headers={"Retry-After": str(_RETRY_AFTER_SECONDS)},
    )


def _on_unexpected(request: Request, _error: Exception) -> JSONResponse:
    # Starlette answers these outside the middleware that sets the id, and then lets the server log them.
    request_id = getattr(request.state, "request_id", None)
    headers = {"X-Request-Id": request_id} if request_id else None
    return error_response(
        _path(request),
        500,
        "InternalError",
        "Something failed here; give the X-Request-Id to the operator.",
        headers=headers,
    )
