"""What an API server answers when it does not do what was asked."""

from hmi_api.errors import HmiError


class ApiRefused(HmiError):
    """The API server refuses a request and would again; ``code`` is the HTTP status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.code = code


class Conflict(ApiRefused):
    """409: the object is there already, or is no longer the one that was read. Read it and try again."""
