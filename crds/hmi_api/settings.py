"""Settings from environment variables, and secrets from small files.

``kubectl create secret --from-file`` and editors leave a newline at the end of a value, so white space around
a value is removed. A control character inside a value is refused.
"""

import json
import unicodedata
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError, model_validator
from pydantic_core import to_jsonable_python
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from hmi_api.errors import InvalidInput

PREFIX = "HMI_"
READ_BY_LIBRARIES = ("AWS_", "HF_")
"""Prefixes of variables with secrets and addresses that libraries read."""
_BYTE_ORDER_MARK = "\ufeff"

SettingsT = TypeVar("SettingsT", bound="HmiSettings")


def trimmed(text: str) -> str:
    """Return a value without the white space around it.

    Raises ``ValueError`` for a control character inside, without the value: it may be a secret.
    """
    value = text.strip().strip(_BYTE_ORDER_MARK).strip()
    for position, character in enumerate(value):
        if unicodedata.category(character) == "Cc":
            raise ValueError(
                f"there is a control character (U+{ord(character):04X}) at position {position}; "
                "give one line of plain text"
            )
    return value


def read_trimmed(file: Path) -> str:
    """Return the text of a one-line file. Raises ``OSError``, or ``ValueError`` without the contents."""
    try:
        return trimmed(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


def trim_environment(environment: MutableMapping[str, str]) -> None:
    """Trim the variables that libraries read, such as ``AWS_SECRET_ACCESS_KEY``.

    Call it before anything reads them. Raises ``InvalidInput`` WrongSettings.
    """
    for name, value in list(environment.items()):
        if name.startswith(READ_BY_LIBRARIES) or name.lower().endswith("_proxy"):
            try:
                environment[name] = trimmed(value)
            except ValueError as error:
                raise InvalidInput("WrongSettings", f"{name}: {error}") from None


class HmiSettings(BaseSettings):
    """Base class of all settings: each field is read from an ``HMI_`` environment variable and trimmed."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _trim(cls, values: Any) -> Any:
        return _all_trimmed(values)

    @classmethod
    def variables(cls, **fields: Any) -> dict[str, str]:
        """Return the environment variables from which another process reads these fields of its settings.

        Raises ``TypeError`` for a name that is no field.
        """
        if unknown := fields.keys() - cls.model_fields.keys():
            raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
        return {
            f"{PREFIX}{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in to_jsonable_python(fields).items()
        }


def load_settings(type_: type[SettingsT], **given: Any) -> SettingsT:
    """Return settings from the environment; ``given`` sets fields by name instead.

    Raises ``InvalidInput`` WrongSettings, which names each wrong variable.
    """
    try:
        return type_(**given)
    except SettingsError as error:  # a variable that should be JSON and is not
        raise InvalidInput("WrongSettings", f"{error}; write it as JSON.") from error
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        message = "\n".join(_message(problem, type_) for problem in problems)
        raise InvalidInput("WrongSettings", message) from None  # the cause contains the values: secrets too


def _all_trimmed(value: Any, *path: str) -> Any:
    if isinstance(value, str):
        return _trimmed_at(value, path)
    if isinstance(value, SecretStr):
        return SecretStr(_trimmed_at(value.get_secret_value(), path))
    if isinstance(value, Mapping):
        return {name: _all_trimmed(inner, *path, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_all_trimmed(inner, *path) for inner in value)
    return value


def _trimmed_at(value: str, path: tuple[str, ...]) -> str:
    try:
        return trimmed(value)
    except ValueError as error:
        name = PREFIX + "__".join(path).upper()
        raise ValueError(f"{name}: {error}") from None


def _message(problem: Any, type_: type[BaseSettings]) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(message)
    first, *rest = (str(part) for part in problem["loc"])
    if rest and (delimiter := type_.model_config.get("env_nested_delimiter")):
        return f"{PREFIX}{delimiter.join((first, *rest)).upper()}: {message}"
    within = f" ({'.'.join(rest)})" if rest else ""
    return f"{PREFIX}{first.upper()}{within}: {message}"
