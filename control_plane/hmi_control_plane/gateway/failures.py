"""How a request for inference fails: one error type, and the failures that several protocols share."""

from typing import Self

from hmi_api.errors import ErrorDetail
from hmi_api.internal.inference import RowError
from hmi_control_plane.gateway.routes import Route
from hmi_control_plane.gateway.unavailable_models import NOT_LOADED_YET
from hmi_control_plane.http.errors import RequestFailed, error_kind
from hmi_control_plane.http.validation_errors import FieldError


class InferenceFailed(RequestFailed):
    """An inference request failed, or one model's part of it."""

    @classmethod
    def of_row(cls, error: RowError, param: str | None) -> Self:
        """Return the failure that a runtime reported for a row."""
        return cls(error.status, error.reason, error.message, param=param)

    @property
    def detail(self) -> ErrorDetail:
        """The ``error`` object of the response."""
        return ErrorDetail(
            message=self.message, type=error_kind(self.status), param=self.param, code=self.reason
        )


def unknown_model(name: str) -> InferenceFailed:
    """Return the failure for a model that the tenant does not have, whether or not another tenant has it."""
    return InferenceFailed(
        404, "ModelNotFound", f'There is no model "{name}"; GET /v1/models lists yours.', param="model"
    )


def unknown_version(name: str, version: str, current: int | None) -> InferenceFailed:
    """Return the failure for a version that cannot be requested."""
    available = "none yet" if current is None else f"only {current}"
    message = f'Version "{version}" of the model "{name}" cannot be requested; available: {available}.'
    return InferenceFailed(404, "VersionNotFound", message, param="version")


def not_loaded(name: str, route: Route) -> InferenceFailed:
    """Return the failure for a model that no runtime serves: 503 where a retry may help, else 409."""
    unavailable = route.unavailable or NOT_LOADED_YET
    return InferenceFailed(
        409 if unavailable.retry_after is None else 503,
        unavailable.reason,
        f'The model "{name}" is not served. {unavailable.message}',
        param="model",
        retry_after=unavailable.retry_after,
    )


def malformed_json() -> InferenceFailed:
    """Return the failure for a body that is not JSON."""
    return InferenceFailed(400, "MalformedJson", "The body is not valid JSON.")


def invalid_field(error: FieldError) -> InferenceFailed:
    """Return the failure for an invalid field."""
    return InferenceFailed(400, "InvalidField", error.message, param=error.field)
