"""What the command says when something is wrong: one short line, and what to do about it."""

import contextlib

from rich.console import Console
from rich.text import Text

EXIT_FAILED = 1
"""The server or the world said no."""

EXIT_USAGE = 2
"""The command line or a manifest cannot be understood."""


class CliError(Exception):
    """Ends the command with a message and a hint on standard error, never with a traceback."""

    def __init__(self, message: str, *, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class Refused(CliError):
    """The server answered, and its answer was no; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int, *, hint: str = "") -> None:
        super().__init__(f"{message} (HTTP {status})", hint=hint)
        self.status = status


class NotUnderstood(CliError):
    """Something that the user typed or wrote makes no sense; asking the server would change nothing."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=EXIT_USAGE)


def usage_error(message: str, *, hint: str = "") -> NotUnderstood:
    """Return the error for something the user typed that cannot be understood."""
    return NotUnderstood(message, hint=hint)


def complain(error: CliError, about: str = "") -> None:
    """Print an error and its hint on standard error; ``about`` says which of many things it is about."""
    message = f"{about}: {error.message}" if about else error.message
    _print("error: ", "red", message)
    if error.hint:
        _print("hint: ", "dim", error.hint)


def warn(message: str) -> None:
    """Print what is no error, but should be known."""
    _print("warning: ", "yellow", message)


def _print(begins: str, style: str, message: str) -> None:
    message = message.encode(errors="backslashreplace").decode()  # what was not UTF-8 in the environment
    # Where standard error takes nothing, there is nobody to tell; the exit code says that it failed.
    with contextlib.suppress(OSError):
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(Text(begins, style=style), Text(message), sep="")
