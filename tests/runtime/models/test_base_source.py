"""Sources of base models: failures of the hub are transient, damaged files are for the user to fix."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support_encoders import small_model

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_runtime.models import source
from hmi_runtime.models.source import load_base

httpx2 = pytest.importorskip("httpx2")
URI = "hf://owner/model"
Raise = Callable[..., None]


def answered(type_: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "http://hub.invalid/owner/model")
    return type_("the hub's words", response=httpx2.Response(status, request=request))


def not_in_cache(cause: Exception) -> LocalEntryNotFoundError:
    """The error of the hub's client if the hub does not answer and the cache is empty."""
    error = LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder.")
    error.__cause__ = cause
    return error


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Raise:
    """A hub whose downloads fail; the cache is empty."""

    def failing(error: Exception) -> None:
        def download(*_: object, local_files_only: bool = False, **__: object) -> str:
            raise LocalEntryNotFoundError("not cached") if local_files_only else error

        monkeypatch.setattr(source, "snapshot_download", download)

    return failing


def failure(uri: str = URI, revision: str | None = None) -> HmiError:
    with pytest.raises(HmiError) as raised:
        load_base(uri, revision)
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("[Errno -3] Temporary failure in name resolution"),
        httpx2.ConnectTimeout("timed out"),
        httpx2.ReadTimeout("timed out"),
        httpx2.RemoteProtocolError("Server disconnected"),
        httpx2.ProxyError("502"),
        not_in_cache(httpx2.ConnectError("refused")),
        not_in_cache(httpx2.ReadTimeout("timed out")),
        not_in_cache(answered(HfHubHTTPError, 503)),
        answered(HfHubHTTPError, 500),
        answered(HfHubHTTPError, 502),
        answered(HfHubHTTPError, 429),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
    ],
    ids=repr,
)
def test_failures_of_the_hub_are_transient(error: Exception, hub: Raise) -> None:
    hub(error)
    found = failure()
    assert isinstance(found, NotReady)
    assert found.reason == "BaseModelSourceAway"
    assert "tried again" in found.message


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (answered(RepositoryNotFoundError, 401), "check the name, or have HF_TOKEN set"),
        (answered(RepositoryNotFoundError, 404), "check the name, or have HF_TOKEN set"),
        (answered(GatedRepoError, 403), "accept its terms"),
        (answered(HfHubHTTPError, 403), "accept its terms"),
        (answered(RevisionNotFoundError, 404), "correct baseModel.revision"),
        (not_in_cache(OfflineModeIsEnabled("offline")), "HF_HUB_OFFLINE"),
        (not_in_cache(answered(HfHubHTTPError, 401)), "HF_TOKEN"),
        (ValueError("Repo id must be in the form 'owner/name'"), "Check the name"),
    ],
    ids=repr,
)
def test_errors_that_need_the_user_are_permanent(error: Exception, cure: str, hub: Raise) -> None:
    hub(error)
    found = failure(revision="v1")
    assert isinstance(found, InvalidInput)
    assert found.reason == "BaseModelNotFound"
    assert cure in found.message


def test_a_partly_cached_model_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attempts = []

    def download(*_: object, local_files_only: bool = False, **__: object) -> str:
        attempts.append(local_files_only)
        if not local_files_only:
            raise httpx2.ConnectError("refused")
        (tmp_path / "config.json").write_text("{}")  # the download ended before the weights
        return str(tmp_path)

    monkeypatch.setattr(source, "snapshot_download", download)
    assert isinstance(failure(), NotReady)
    assert attempts == [True, False]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("whole")
    small_model(
        "bert", vocab_size=6, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    ).save_pretrained(folder)
    words = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "base")
    return tmp_path / "base"


def test_a_complete_model_is_read(folder: Path) -> None:
    assert load_base(str(folder)).encoder().config.layers > 0


def with_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


def written(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def header_claims(shape: list[int]) -> Callable[[Path], None]:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    return written("model.safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 4)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (written("config.json", b""), "config.json"),
        (written("config.json", b"{"), "config.json"),
        (written("config.json", b"\xff\xfe"), "config.json"),
        (written("config.json", b"[" * 100_000), "config.json"),
        (written("config.json", b"[]"), "JSON object"),
        (with_config(hidden_size="many"), "config.json"),
        (with_config(hidden_size=None), "config.json"),
        (with_config(num_attention_heads=0), "attention heads"),
        (with_config(num_attention_heads=7), "divide"),
        (with_config(num_hidden_layers=10**9), "layers"),
        (with_config(num_hidden_layers=500, hidden_size=60_000), "config.json"),
        (with_config(vocab_size=10**12), "vocabulary"),
        (with_config(vocab_size=10**7), "does not fit config.json"),
        (with_config(hidden_act="swish_of_ours"), "swish_of_ours"),
        (written("tokenizer.json", b""), "tokenizer"),
        (written("tokenizer.json", b"{}"), "tokenizer"),
        (written("tokenizer.json", b'{"model": 3}'), "tokenizer"),
        (written("tokenizer_config.json", b"[]"), "tokenizer"),
        (written("model.safetensors", b""), "model.safetensors"),
        (written("model.safetensors", b"no tensors" * 9), "model.safetensors"),
        (written("model.safetensors", struct.pack("<Q", 1 << 60)), "model.safetensors"),
        (header_claims([10**9, 10**9]), "model.safetensors"),
        (header_claims([1]), "has no tensor"),
        (
            written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid x\n"),
            "git lfs pull",
        ),
    ],
)
def test_damaged_files_are_refused_at_once(damage: Callable[[Path], None], words: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(InvalidInput) as raised:
        load_base(str(folder)).encoder()
    assert raised.value.reason.startswith("BaseModel")
    assert words in raised.value.message


def test_files_that_are_too_large_are_not_read(folder: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        path = folder / name
        size = path.stat().st_size
        os.truncate(path, 300 << 20)
        with pytest.raises(InvalidInput, match=name):
            load_base(str(folder))
        os.truncate(path, size)
