"""How a request for inference fails: one error type, and a route class that answers in OpenAI's shape."""

from collections.abc import Callable, Coroutine
from typing import Any, Self

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from hmi_api.errors import ErrorDetail, HmiError
from hmi_api.wire import RowError
from hmi_control_plane.errors import error_kind, error_response, sendable
from hmi_control_plane.fields import FieldProblem, first_request_problem

RETRY_AFTER_SECONDS = "1"


class InferenceFailed(HmiError):
    """A request, or one model's part of it, has no answer: ``status`` is HTTP's, ``param`` the field."""

    def __init__(self, status: int, reason: str, message: str, *, param: str | None = None) -> None:
        super().__init__(reason, sendable(message))
        self.status = status
        self.param = param and sendable(param)

    @classmethod
    def of_row(cls, error: RowError, param: str | None) -> Self:
        """Return the failure that a runtime reported of a row."""
        return cls(error.status, error.reason, error.message, param=param)

    @property
    def detail(self) -> ErrorDetail:
        """The inner object of the answer."""
        return ErrorDetail(
            message=self.message, type=error_kind(self.status), param=self.param, code=self.reason
        )

    def response(self) -> Response:
        """Return the answer for a request that failed as a whole."""
        headers = {"Retry-After": RETRY_AFTER_SECONDS} if self.status == 503 else None
        return error_response(self.status, self.reason, self.message, param=self.param, headers=headers)


def unknown_model(name: str) -> InferenceFailed:
    """Return the failure for a model that is not the tenant's, whether or not somebody else has it."""
    return InferenceFailed(
        404, "ModelNotFound", f'There is no model "{name}"; GET /v1/models lists yours.', param="model"
    )


def not_loaded(name: str) -> InferenceFailed:
    """Return the failure for a model that no runtime can serve at the moment."""
    return InferenceFailed(
        503, "ModelNotLoaded", f'The model "{name}" is not loaded yet; try again shortly.', param="model"
    )


class InferenceRoute(APIRoute):
    """A route that answers ``InferenceFailed``, and says 400 to fields that do not fit, as OpenAI does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, wrapped."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except InferenceFailed as failure:
                return failure.response()
            except RequestValidationError as error:
                return invalid_field(first_request_problem(error)).response()

        return answer


def malformed_json() -> InferenceFailed:
    """Return the failure for a body that is no JSON."""
    return InferenceFailed(400, "MalformedJson", "The body is not valid JSON.")


def invalid_field(problem: FieldProblem) -> InferenceFailed:
    """Return the failure for a field that does not fit."""
    return InferenceFailed(400, "InvalidField", problem.message, param=problem.where)
