"""Errors of the resource API, as Kubernetes words them."""

from typing import Any

from hmi_api.errors import InvalidInput


class ApiError(InvalidInput):
    """A request that the resource API refuses; ``code`` is the HTTP status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.code = code

    def status(self) -> dict[str, Any]:
        """Return the body of the answer: a Kubernetes ``Status``."""
        return {
            "apiVersion": "v1",
            "kind": "Status",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


def not_found(plural: str, name: str) -> ApiError:
    """There is no such object."""
    return ApiError(404, "NotFound", f'{plural} "{name}" not found')


def already_exists(plural: str, name: str) -> ApiError:
    """The object that should be created is there."""
    return ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')


def conflict(plural: str, name: str, why: str) -> ApiError:
    """The request contradicts the object's present state."""
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": {why}')


def invalid(message: str) -> ApiError:
    """The object cannot be as it is given."""
    return ApiError(422, "Invalid", message)


def bad_request(message: str) -> ApiError:
    """The request makes no sense as it stands."""
    return ApiError(400, "BadRequest", message)


def too_large(limit: int) -> ApiError:
    """The body is longer than any manifest."""
    return ApiError(413, "RequestEntityTooLarge", f"The body is longer than {limit} bytes.")
