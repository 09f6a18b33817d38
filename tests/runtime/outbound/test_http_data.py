"""Data over HTTP: names that resolve to several addresses or change them, redirects, and messages."""

from collections.abc import Sequence
from pathlib import Path

import fsspec
import pytest
from support_outbound import CLUSTER, ROW, Install, Server, open_to_loopback, read_all

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.resources.common import DataSource
from hmi_runtime.outbound import guard as guards
from hmi_runtime.outbound.clients import open_address
from hmi_runtime.outbound.guard import find_guard_error
from hmi_runtime.training.data_reader import read_texts
from hmi_runtime.training.peft import download_peft_folder


def test_the_address_that_was_checked_is_the_one_connected_to(
    install: Install, server: Server, connections: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name resolves to another address the second time (DNS rebinding)."""
    server.answers["/rows.jsonl"] = ROW
    answers = iter([["127.0.0.1"], *[["169.254.169.254"]] * 20])
    names: dict[str, Sequence[str]] = {}
    install(open_to_loopback(), names)
    monkeypatch.setattr(guards.process, "lookup", lambda host, port: next(answers))

    filesystem, path = open_address(f"http://rebinding.example:{server.port}/rows.jsonl")
    assert filesystem.cat_file(path) == ROW  # resolved once, and connected to that address
    fsspec.asyn.sync(filesystem.loop, filesystem._session.close)
    filesystem._session = None
    with pytest.raises((InvalidInput, FileNotFoundError)) as caught:
        filesystem.cat_file(path)

    assert find_guard_error(caught.value) is not None
    assert set(connections) == {"127.0.0.1"}


def test_of_several_addresses_only_the_allowed_ones_are_tried(
    install: Install, server: Server, connections: list[str]
) -> None:
    server.answers["/rows.jsonl"] = ROW
    install(open_to_loopback(), {"mixed.example": ["169.254.169.254", "127.0.0.1", "10.0.0.1"]})

    assert read_all(f"http://mixed.example:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert set(connections) == {"127.0.0.1"}


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest",
        "http://[::ffff:169.254.169.254]/latest",
        "http://2852039166/latest",
        "http://evil.example/x",
        "http://metadata.google.internal/x",
        "//169.254.169.254/latest",
    ],
)
def test_a_redirect_to_an_internal_address_is_not_followed(
    target: str, install: Install, server: Server, connections: list[str]
) -> None:
    server.answers["/rows.jsonl"] = target
    install(open_to_loopback(), {"good.example": ["127.0.0.1"], "evil.example": ["169.254.169.254"]})

    with pytest.raises(InvalidInput) as caught:
        read_all(f"http://good.example:{server.port}/rows.jsonl")

    assert caught.value.reason == "AddressNotAllowed"
    assert set(connections) == {"127.0.0.1"}


def test_a_redirect_to_an_allowed_address_is_followed(install: Install, server: Server) -> None:
    server.answers["/rows.jsonl"] = f"http://other.example:{server.port}/there.jsonl"
    server.answers["/there.jsonl"] = ROW
    install(open_to_loopback(), {"good.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})

    assert read_all(f"http://good.example:{server.port}/rows.jsonl") == [{"text": "a row"}]
    assert (f"other.example:{server.port}", "/there.jsonl") in server.requests


def test_the_source_of_an_imported_adapter_is_checked_too(
    install: Install, tmp_path: Path, connections: list[str]
) -> None:
    install(CLUSTER, {"evil.example": ["127.0.0.1"]})

    with pytest.raises(InvalidInput, match="AddressNotAllowed"):
        download_peft_folder("http://evil.example/adapter", tmp_path / "adapter")
    assert connections == []


def test_no_text_of_a_server_appears_in_a_message(install: Install, server: Server) -> None:
    install(open_to_loopback(), {"good.example": ["127.0.0.1"]})
    base = f"http://good.example:{server.port}"
    server.answers["/page.jsonl"] = b"SECRET-REASON and more\n"
    server.answers["/object.jsonl"] = b'{"SECRET-REASON": 1}\n'
    server.answers["/table.csv"] = b"SECRET-REASON,b\n1,2\n"

    for uri, format_ in (
        ("missing.jsonl", "JSONLines"),
        ("page.jsonl", "JSONLines"),
        ("object.jsonl", "JSONLines"),
        ("table.csv", "CSV"),
    ):
        source = DataSource(uri=f"{base}/{uri}", format=format_)
        for missing in (404, 403, 500):
            server.missing = missing
            with pytest.raises(HmiError) as caught:
                list(read_texts([source]))
            assert "SECRET-REASON" not in caught.value.message, uri
