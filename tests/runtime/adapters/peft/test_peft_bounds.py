"""Any PEFT folder of a tenant is read or refused within bounds of time and memory."""

import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file
from support_peft import SEQUENCE, edit_config, make_model, saved_adapter

from hmi_api.errors import InvalidInput
from hmi_runtime.adapters.peft import files as peft_files
from hmi_runtime.adapters.peft.config import MAX_EXPRESSIONS, MAX_PATTERNS, by_first_pattern
from hmi_runtime.adapters.peft.importer import import_peft
from hmi_runtime.models.source import BaseModel
from hmi_runtime.training.peft import download_peft_folder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CONFIG, TENSORS = peft_files.CONFIG_FILE, peft_files.TENSORS_FILE
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"
LIMIT = 20.0
"""Seconds within which a folder must be refused, on a busy machine."""


def refusal(folder: Path, base: BaseModel) -> InvalidInput:
    begun = time.monotonic()
    with pytest.raises(InvalidInput) as caught:
        import_peft(folder, base, 0, SEQUENCE)
    assert time.monotonic() - begun < LIMIT
    assert len(caught.value.message) < 2000
    return caught.value


@pytest.mark.parametrize(
    "pattern",
    [
        "(",  # an invalid pattern
        "a)|(b",  # closes the group around it
        "*",
        "(?=query)query",  # needs backtracking
        r"(query)\1",
        "((((a{100}){100}){100}){100})",  # compiles to more than 10 MB
        r"\w{5000}",
        "a" * 300,
    ],
)
def test_a_pattern_that_cannot_be_matched_in_linear_time_is_refused(tmp_path: Path, pattern: str) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, alpha_pattern={pattern: 4})
    refused = refusal(folder, base)
    assert refused.reason == "AdapterPattern"
    assert "alpha_pattern" in refused.message


@pytest.mark.parametrize(
    "pattern", ["([a-z0-9.]+)+!", "(.*)*(.*)*(.*)*!", r"(\w|\w\w|[a-z]+)*!", "(a?){200}!"]
)
def test_a_pattern_that_python_would_match_for_hours_is_matched_at_once(tmp_path: Path, pattern: str) -> None:
    base, folder = saved_adapter(tmp_path)
    plain = import_peft(folder, base, 0, SEQUENCE)
    edit_config(folder, alpha_pattern={pattern: 4}, rank_pattern={pattern: 4}, target_modules=pattern)
    begun = time.monotonic()
    found = import_peft(folder, base, 0, SEQUENCE)
    assert time.monotonic() - begun < LIMIT
    assert torch.equal(found.layers[0].lora["query"].b, plain.layers[0].lora["query"].b)


@pytest.mark.parametrize(
    ("pattern", "most"), [("layer.{}.query", MAX_PATTERNS), (r"(\w{{200}})|{}", MAX_EXPRESSIONS)]
)
def test_too_many_patterns_are_refused(tmp_path: Path, pattern: str, most: int) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, alpha_pattern={pattern.format(n): 4 for n in range(most)})
    begun = time.monotonic()
    assert import_peft(folder, base, 0, SEQUENCE).layers
    assert time.monotonic() - begun < LIMIT
    edit_config(folder, alpha_pattern={pattern.format(n): 4 for n in range(most + 1)})
    assert refusal(folder, base).reason == "AdapterPattern"


PATHS = [f"bert.encoder.layer.{n}.attention.self.{name}" for n in (1, 2, 12) for name in ("query", "key")]


@pytest.mark.parametrize(
    "pattern",
    ["query", "self.query", "2.*query", r"layer\.1\..*", "layer.(1|12).attention.self.key", "uery", "que",
     ".*", "[a-z.]*1[.a-z]*", r"(?:bert\.)encoder.*\.query", PATHS[0], r"^.*key"],
)  # fmt: skip
def test_patterns_match_as_peft_matches_them(pattern: str) -> None:
    expected = {path: 4.0 for path in PATHS if re.match(rf"(.*\.)?({pattern})$", path)}
    assert by_first_pattern({pattern: 4.0}, PATHS, "alpha_pattern") == expected


def test_the_first_pattern_that_matches_counts() -> None:
    values = by_first_pattern(
        {"1.attention.self.query": 2.0, "query": 3.0, "key": 5.0}, PATHS[:4], "alpha_pattern"
    )
    assert values == dict(zip(PATHS[:4], (2.0, 5.0, 3.0, 5.0), strict=True))


@pytest.mark.parametrize("name", [CONFIG, "config.json"])
@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"[1]", b"\xff", b""]
)
def test_invalid_json_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    base, folder = saved_adapter(tmp_path)
    (folder / name).write_bytes(content)
    refused = refusal(folder, base)
    assert refused.reason == "AdapterNotPeft"
    assert name in refused.message


@pytest.mark.parametrize("name", [CONFIG, TENSORS, "config.json"])
def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, folder = saved_adapter(tmp_path)
    if name == "config.json":
        (folder / name).write_text("{}")
    monkeypatch.setitem(peft_files.MAX_FILE_BYTES, name, (folder / name).stat().st_size - 1)
    refused = refusal(folder, base)
    assert refused.reason == "AdapterNotPeft"
    assert f"{name} has" in refused.message


@pytest.mark.parametrize("size", [0, 10, None])
def test_downloads_stop_at_the_size_limit(
    tmp_path: Path, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may not send a file's size, or a wrong one."""
    memory = MemoryFileSystem()
    memory.pipe({f"/liar/{CONFIG}": b"{}", f"/liar/{TENSORS}": b"x" * 5_000_000})
    monkeypatch.setitem(peft_files.MAX_FILE_BYTES, TENSORS, 1_500_000)
    info = MemoryFileSystem.info

    def lie(self: MemoryFileSystem, path: str, **options: Any) -> dict[str, Any]:
        return {**info(self, path, **options), "size": size}

    monkeypatch.setattr(MemoryFileSystem, "info", lie)
    with pytest.raises(InvalidInput, match=f"AdapterNotPeft: {TENSORS} has"):
        download_peft_folder("memory://liar", tmp_path / "copy")
    assert (tmp_path / "copy" / TENSORS).stat().st_size <= 1_500_000


def header(folder: Path, content: bytes, length: int | None = None) -> None:
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(content) if length is None else length) + content)


def one_tensor(dtype: str, shape: list[int], size: int) -> bytes:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"base_model.model.x.weight": entry}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * min(size, 64)


@pytest.mark.parametrize("length", [2**63, 100_000_000, 9 << 20])
def test_a_header_that_is_too_long_is_refused(tmp_path: Path, length: int) -> None:
    base, folder = saved_adapter(tmp_path)
    header(folder, b"{", length)
    refused = refusal(folder, base)
    assert refused.reason == "AdapterNotPeft"
    assert f"header of {length} bytes" in refused.message


@pytest.mark.parametrize("content", [b"[" * 1_000_000, b'{"a":' * 100_000, b"{}", b"", b"null"])
def test_an_invalid_header_is_refused(tmp_path: Path, content: bytes) -> None:
    base, folder = saved_adapter(tmp_path)
    header(folder, content)
    refusal(folder, base)


@pytest.mark.parametrize(
    ("dtype", "shape", "size", "reason"),
    [
        ("F32", [2**40, 2**40], 4, "AdapterNotPeft"),
        ("F32", [2**31], 2**33, "AdapterNotPeft"),  # longer than the file
        ("F32", [0, 2**62], 0, "AdapterShape"),
        ("I64", [1], 8, "AdapterUnsupported"),
        ("BOOL", [1], 1, "AdapterUnsupported"),
        ("F8_E4M3", [1], 1, "AdapterUnsupported"),
        ("F4", [2], 1, "AdapterUnsupported"),
        ("F6_E2M3", [4], 3, "AdapterNotPeft"),
        ("XX", [1], 1, "AdapterNotPeft"),
    ],
)
def test_a_tensor_that_cannot_be_a_weight_is_refused(
    tmp_path: Path, dtype: str, shape: list[int], size: int, reason: str
) -> None:
    base, folder = saved_adapter(tmp_path)
    (folder / TENSORS).write_bytes(one_tensor(dtype, shape, size))
    assert refusal(folder, base).reason == reason


def edit_tensors(folder: Path, **changes: torch.Tensor) -> None:
    tensors = load_file(folder / TENSORS)
    for name in tensors:
        for ending, tensor in changes.items():
            if name.endswith(ending.replace("__", ".")):
                tensors[name] = tensor.clone()
    save_file(tensors, folder / TENSORS)


@pytest.mark.parametrize("name", ["classifier__weight", "query__lora_A__weight", "classifier__bias"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1)])
def test_impossible_shapes_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_tensors(folder, **{name: torch.ones(shape)})
    assert refusal(folder, base).reason == "AdapterShape"


@pytest.mark.parametrize("name", ["classifier__weight", "query__lora_A__weight", "classifier__bias"])
def test_the_error_for_an_empty_tensor_says_to_gather_shards(tmp_path: Path, name: str) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_tensors(folder, **{name: torch.ones(0)})
    refused = refusal(folder, base)
    assert refused.reason == "AdapterShape"
    assert "gather" in refused.message
    assert name.replace("__", ".") in refused.message


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["classifier__weight", "query__lora_A__weight", "classifier__bias"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    base, folder = saved_adapter(tmp_path)
    shape = next(
        t.shape for n, t in load_file(folder / TENSORS).items() if n.endswith(name.replace("__", "."))
    )
    edit_tensors(folder, **{name: torch.full(shape, value)})
    assert refusal(folder, base).reason == "AdapterNotFinite"


def test_a_scale_that_makes_weights_infinite_is_refused(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    edit_config(folder, lora_alpha=1e8)
    edit_tensors(folder, query__lora_B__weight=torch.full((16, 4), 1e38))
    assert refusal(folder, base).reason == "AdapterNotFinite"


@pytest.mark.parametrize("name", [CONFIG, TENSORS, "config.json"])
def test_the_error_for_a_git_lfs_pointer_says_to_pull(tmp_path: Path, name: str) -> None:
    base, folder = saved_adapter(tmp_path)
    (folder / name).write_bytes(POINTER)
    refused = refusal(folder, base)
    assert refused.reason == "AdapterNotPeft"
    assert f"{name} is a git-lfs pointer" in refused.message
    assert "git lfs pull" in refused.message


def test_the_error_for_a_base_model_that_is_a_git_lfs_pointer_says_to_pull(tmp_path: Path) -> None:
    _, base = make_model("bert", tmp_path / "base")
    (base.path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(InvalidInput, match=r"BaseModelIncomplete: .*git lfs pull"):
        base.encoder()


def test_long_names_are_cut_in_messages(tmp_path: Path) -> None:
    base, folder = saved_adapter(tmp_path)
    tensors = load_file(folder / TENSORS)
    save_file({**tensors, "x" * 100_000: torch.ones(1)}, folder / TENSORS)
    assert refusal(folder, base).reason == "AdapterUnsupported"
