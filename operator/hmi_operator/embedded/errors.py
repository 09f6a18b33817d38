"""Errors of the resource API, with the reasons and messages of Kubernetes."""

from typing import Any

from hmi_api.errors import InvalidInput


class ResourceApiError(InvalidInput):
    """A rejected request; ``code`` is the HTTP status."""

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


def not_found(plural: str, name: str) -> ResourceApiError:
    """Return the error for an object that does not exist."""
    return ResourceApiError(404, "NotFound", f'{plural} "{name}" not found')


def already_exists(plural: str, name: str) -> ResourceApiError:
    """Return the error for an object that already exists."""
    return ResourceApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')


def conflict(plural: str, name: str, why: str) -> ResourceApiError:
    """Return the error for a request that contradicts the object's state."""
    return ResourceApiError(409, "Conflict", f'Operation cannot be fulfilled on {plural} "{name}": {why}')


def invalid(message: str) -> ResourceApiError:
    """Return the error for an invalid object."""
    return ResourceApiError(422, "Invalid", message)


def bad_request(message: str) -> ResourceApiError:
    """Return the error for a malformed request."""
    return ResourceApiError(400, "BadRequest", message)
