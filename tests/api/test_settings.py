"""Settings from the environment and files are trimmed, or refused by name."""

import importlib
import json
import pkgutil
import typing
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

import hmi_cli
import hmi_control_plane
import hmi_operator
import hmi_runtime
from hmi_api.errors import InvalidInput, NotReady
from hmi_api.internal.trainer import TrainingSettings
from hmi_api.security.bearer import TokenSource
from hmi_api.settings import HmiSettings, load_settings, read_trimmed, trim_environment, trimmed
from hmi_cli.context import trimmed_option
from hmi_cli.errors import CliError
from hmi_cli.main import app
from hmi_cli.system.home import HomeFolder

PACKAGES = (hmi_cli, hmi_control_plane, hmi_operator, hmi_runtime)
SAMPLES = {
    "window_counts": '{"days": 7}',
    "currency": "EUR",
    "device": "cuda:1",
    "precision": "int8",
    "control_plane_url": "http://control-plane",
    "log_format": "json",
    "log_level": "DEBUG",
    "trainer_image_pull_policy": "Always",
    "roles": '{"operator": "system:serviceaccount:hmi:operator"}',
    "gateway": '{"max_texts": 7}',
    "watch_namespaces": '["shop"]',
    "trainer_image_pull_secrets": '["pull"]',
    "trainer_node_selector": '{"disk": "fast"}',
    "trainer_tolerations": '[{"key": "spot"}]',
    "trainer_default_resources": '{"limits": {"cpu": "1"}}',
}
"""Text for the fields whose type alone does not say what they take."""


def _settings_classes() -> set[type[BaseSettings]]:
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.rsplit(".", 1)[-1].endswith("settings"):
                importlib.import_module(module.name)
    found: set[type[BaseSettings]] = set()
    waiting: list[type[BaseSettings]] = [BaseSettings]
    while waiting:
        below = [c for c in waiting.pop().__subclasses__() if c.__module__.startswith("hmi_")]
        found.update(below)
        waiting.extend(below)
    return found - {HmiSettings}


CLASSES = sorted(_settings_classes(), key=lambda found: found.__name__)
TEXT_TYPES = {str, SecretStr, Path}


def _types(annotation: Any) -> set[Any]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _types(annotation.__origin__)
    inner = [part for part in typing.get_args(annotation) if part is not type(None)]
    return {annotation} if not inner else {part for one in inner for part in _types(one)}


def _sample(name: str, field: FieldInfo) -> str:
    if name in SAMPLES:
        return SAMPLES[name]
    types = _types(field.annotation)
    if types == {bool}:
        return "true"
    if types <= {int, float}:
        default = field.get_default(call_default_factory=False)
        return str(default if default is not None else 3)
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, dict | tuple | list):
        return "{}" if isinstance(default, dict) else "[]"
    if typing.get_origin(field.annotation) is typing.Literal:
        return str(typing.get_args(field.annotation)[0])
    assert types <= TEXT_TYPES, f"{name} needs a sample"
    return f"value-of-the-{name}"


def _needed(type_: type[BaseSettings]) -> dict[str, str]:
    needed = {name for name, field in type_.model_fields.items() if field.is_required()}
    return {f"HMI_{name.upper()}": _sample(name, type_.model_fields[name]) for name in needed} | (
        {"HMI_INTERNAL_TOKEN": "a-token-of-16-signs"} if "internal_token" in type_.model_fields else {}
    )


def _loaded(type_: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return load_settings(type_)


def _environment(type_: type[BaseSettings], name: str, value: str) -> dict[str, str]:
    environment = _needed(type_) | {f"HMI_{name.upper()}": value}
    if name == "internal_token_file" and type_.__name__ == "OperatorSettings":
        del environment["HMI_INTERNAL_TOKEN"]  # one or the other
    for one, other in (("webhook_cert_file", "webhook_key_file"), ("webhook_key_file", "webhook_cert_file")):
        if name == one:
            environment[f"HMI_{other.upper()}"] = "/other.pem"
    return environment


def test_every_settings_class_trims() -> None:
    assert len(CLASSES) >= 7
    assert all(issubclass(type_, HmiSettings) for type_ in CLASSES)


@pytest.mark.parametrize("type_", CLASSES)
def test_white_space_around_a_setting_is_removed(
    type_: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, field in type_.model_fields.items():
        plain = _sample(name, field)
        expected = _loaded(type_, _environment(type_, name, plain), monkeypatch)
        found = _loaded(type_, _environment(type_, name, f"\r\n {plain}\t\r\n"), monkeypatch)

        assert getattr(found, name) == getattr(expected, name), name
        if _types(field.annotation) <= {str, Path} and name not in SAMPLES:
            assert str(getattr(found, name)) == plain, name


@pytest.mark.parametrize("type_", CLASSES)
def test_a_control_character_inside_is_refused_by_name_and_without_the_value(
    type_: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, field in type_.model_fields.items():
        if not _types(field.annotation) <= TEXT_TYPES or _sample(name, field) != f"value-of-the-{name}":
            continue
        value = "a-secret-of-16-signs\nand-more"
        with pytest.raises(InvalidInput) as caught:
            _loaded(type_, _environment(type_, name, value), monkeypatch)

        assert f"HMI_{name.upper()}" in caught.value.message
        assert "U+000A" in caught.value.message
        assert "secret" not in caught.value.message
        assert caught.value.__suppress_context__


def test_settings_within_settings_are_trimmed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = next(type_ for type_ in CLASSES if type_.__name__ == "RuntimeSettings")
    account = "system:serviceaccount:hmi:operator"

    found = _loaded(runtime, _needed(runtime) | {"HMI_ROLES__OPERATOR": f"{account}\n"}, monkeypatch)

    assert found.roles.operator == account


def test_a_secret_of_white_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for type_ in CLASSES:
        for name, field in type_.model_fields.items():
            if SecretStr in _types(field.annotation):
                with pytest.raises(InvalidInput, match=f"HMI_{name.upper()}"):
                    _loaded(type_, _environment(type_, name, " " * 20 + "\n"), monkeypatch)


def test_settings_given_in_code_are_trimmed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = next(type_ for type_ in CLASSES if type_.__name__ == "Settings")

    found: Any = settings(internal_token=SecretStr("a-token-of-16-signs\n"), database_url="sqlite:///a.db\n")

    assert found.internal_token.get_secret_value() == "a-token-of-16-signs"
    assert found.database_url == "sqlite:///a.db"


# --- what libraries read ---------------------------------------------------------------------------


def test_only_variables_that_libraries_read_are_trimmed() -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": "key\n",
        "HF_TOKEN": " token\r\n",
        "https_proxy": "http://proxy:3128\n",
        "PS1": "\n$ ",
    }

    trim_environment(environment)

    assert environment == {
        "AWS_SECRET_ACCESS_KEY": "key",
        "HF_TOKEN": "token",
        "https_proxy": "http://proxy:3128",
        "PS1": "\n$ ",
    }


def test_a_credential_of_two_lines_is_refused_by_name_alone() -> None:
    with pytest.raises(InvalidInput, match="AWS_SECRET_ACCESS_KEY") as caught:
        trim_environment({"AWS_SECRET_ACCESS_KEY": "half\na secret"})

    assert "secret " not in caught.value.message


# --- files -----------------------------------------------------------------------------------------


def test_a_token_file_is_read_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("\ufefftoken-1\r\n")

    assert TokenSource(file=file).current() == "token-1"
    assert read_trimmed(file) == "token-1"


@pytest.mark.parametrize("contents", [b"two\nlines", b"\xff\xfe\x00"])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, contents: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(contents)

    with pytest.raises(NotReady, match="TokenUnreadable"):
        TokenSource(file=file).current()


def test_secrets_of_the_home_folder_are_trimmed_or_refused(tmp_path: Path) -> None:
    home = HomeFolder(tmp_path / "home")
    home.create()
    file = home.path / "secrets" / "admin-key"
    file.write_text("hmi_admin_key\r\n\n")
    assert home.read_admin_key() == "hmi_admin_key"

    file.write_text("hmi_admin_key\nanother")
    with pytest.raises(CliError, match="admin-key"):
        home.read_admin_key()


# --- the command line ------------------------------------------------------------------------------


def _options(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    for inner in getattr(command, "commands", {}).values():
        yield from _options(inner)


def test_every_option_that_has_a_variable_is_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    command = typer.main.get_command(app)
    context = click.Context(command)
    named = [option for option in _options(command) if option.envvar]
    assert {str(option.envvar) for option in named} >= {
        "HMI_ADMIN_KEY",
        "HMI_API_KEY",
        "HMI_HOME",
        "HMI_SERVER",
    }

    for option in named:
        given = "8080" if option.name == "port" else "value"
        monkeypatch.setenv(str(option.envvar), f"{given}\r\n")
        value, _ = option.handle_parse_result(context, {}, [])
        assert str(value) == given, option.envvar


def test_an_option_of_two_lines_is_refused() -> None:
    with pytest.raises(CliError, match=r"U\+000A"):
        trimmed_option("key\nmore")
    assert trimmed_option(None) is None


def test_white_space_is_trimmed_and_control_characters_are_refused() -> None:
    assert trimmed("\u00a0 a b \n") == "a b"
    assert trimmed("\ufeffa\n") == "a"
    assert json.loads(trimmed('{"a": 1}\n')) == {"a": 1}
    for inside in ("a\x00b", "a\tb", "a\x7fb", "a\x85b"):
        with pytest.raises(ValueError, match="control character"):
            trimmed(inside)


def test_variables_written_for_a_child_process_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "run_id": "r1",
        "work_dir": Path("/work"),
        "max_rank": 8,
        "data_allowed_hosts": ("a.example", "b.example"),
        "data_allowed_networks": (ip_network("10.0.0.0/8"),),
    }
    for name, value in TrainingSettings.variables(**fields).items():
        monkeypatch.setenv(name, value)
    read = load_settings(TrainingSettings)
    assert {name: getattr(read, name) for name in fields} == fields
    with pytest.raises(TypeError, match="run_name"):
        TrainingSettings.variables(run_name="r1")
