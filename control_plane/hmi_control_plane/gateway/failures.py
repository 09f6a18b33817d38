"""How a request for inference fails: one error type, and the failures that several protocols share."""

from typing import Self

from hmi_api.errors import ErrorDetail
from hmi_api.internal.inference import RowError
from hmi_control_plane.gateway.routes import Route
from hmi_control_plane.gateway.unavailable_models import Absence
from hmi_control_plane.http.errors import RequestFailed, error_kind
from hmi_control_plane.http.validation_errors import FieldProblem


class InferenceFailed(RequestFailed):
    """A request for inference, or one model's part of it, has no answer."""

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


def unknown_model(name: str) -> InferenceFailed:
    """Return the failure for a model that is not the tenant's, whether or not somebody else has it."""
    return InferenceFailed(
        404, "ModelNotFound", f'There is no model "{name}"; GET /v1/models lists yours.', param="model"
    )


def unknown_version(name: str, version: str, current: int | None) -> InferenceFailed:
    """Return the failure for a version that cannot be asked for."""
    there = "none yet" if current is None else f"{current} alone"
    message = f'The model "{name}" has no version "{version}" that can be asked for; there is {there}.'
    return InferenceFailed(404, "VersionNotFound", message, param="version")


def not_loaded(name: str, route: Route) -> InferenceFailed:
    """Return the failure for a model that no runtime serves: 503 while something is under way, else 409."""
    absence = route.absence or Absence("ModelNotLoaded", "It is not loaded yet; try again shortly.", 1)
    return InferenceFailed(
        409 if absence.retry_after is None else 503,
        absence.reason,
        f'The model "{name}" is not served. {absence.message}',
        param="model",
        retry_after=absence.retry_after,
    )


def malformed_json() -> InferenceFailed:
    """Return the failure for a body that is no JSON."""
    return InferenceFailed(400, "MalformedJson", "The body is not valid JSON.")


def invalid_field(problem: FieldProblem) -> InferenceFailed:
    """Return the failure for a field that does not fit."""
    return InferenceFailed(400, "InvalidField", problem.message, param=problem.where)
