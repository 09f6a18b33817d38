"""Which compiled library is loaded, what its structures are, and how a failed compilation ends."""

import ctypes
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import build_kernels
from hmi_runtime.adapters import kernels
from hmi_runtime.adapters.native import library
from hmi_runtime.server import process
from hmi_runtime.server.settings import RuntimeSettings

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("c++") is None or not torch.cpu.get_capabilities().get("avx2"),
    reason="the C++ kernels are compiled on x86-64 Linux",
)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    for cached in (library.problem, library.load):
        cached.cache_clear()
    yield
    for cached in (library.problem, library.load):
        cached.cache_clear()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(library, "FILE", tmp_path / "libhmi_kernels.so")
    return library.FILE


def compile_text(text: str, *arguments: str) -> None:
    command = ["c++", "-std=c++20", *arguments, "-x", "c++", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_structures_are_those_of_the_header() -> None:
    lines = [f'#include "{build_kernels.FOLDER}/batch.h"', "#include <cstddef>"]
    for kind in (
        *(library.Batch, library.Matrix, library.Lora),
        *(library.Bottlenecks, library.Norms, library.Layer),
    ):
        name = f"hmi::{kind.__name__}"
        lines.append(f'static_assert(sizeof({name}) == {ctypes.sizeof(kind)}, "{name}");')
        for field, *_ in kind._fields_:
            offset = getattr(kind, field).offset
            lines.append(f'static_assert(offsetof({name}, {field}) == {offset}, "{name}::{field}");')
    flags = [flag for flag in build_kernels.FLAGS if flag.startswith("-m")]
    compile_text("\n".join(lines), *flags, "-fsyntax-only")


def test_a_missing_library_is_not_loaded(file: Path) -> None:
    assert library.problem() == "The C++ kernels were not compiled when HMI was installed."
    with pytest.raises(OSError, match="were not compiled"):
        library.load()


def test_half_a_library_is_not_loaded(file: Path) -> None:
    file.write_bytes(b"\x7fELF and no more")
    assert (library.problem() or "").startswith("The C++ kernels cannot be loaded: ")


@needs_compiler
@pytest.mark.parametrize(
    "text", ["", 'extern "C" const char* hmi_sources() { return "other"; }'], ids=["unnamed", "other"]
)
def test_a_library_of_other_sources_is_not_loaded(file: Path, text: str) -> None:
    compile_text(text, "-shared", "-fPIC", "-o", str(file))
    assert library.problem() == "The C++ kernels are of other sources."
    with pytest.raises(OSError, match="other sources"):
        library.load()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the sources with an older library."""
    copy = tmp_path / "native"
    shutil.copytree(build_kernels.FOLDER, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (copy / "libhmi_kernels.so").write_text("older")
    monkeypatch.setattr(build_kernels, "FOLDER", copy)
    monkeypatch.setattr(build_kernels, "LIBRARY", copy / "libhmi_kernels.so")
    return copy


def compiler(tmp_path: Path, script: str) -> str:
    """Return a compiler that runs ``script`` with its output as the last argument, ``$out``."""
    file = tmp_path / "compiler"
    file.write_text(f"#!/bin/sh\nfor out; do :; done\n{script}\n")
    file.chmod(0o755)
    return str(file)


@needs_compiler
@pytest.mark.parametrize("script", ["exit 1", "echo half > $out; exit 1", "exit 0"])
def test_a_failed_compilation_leaves_no_library(
    script: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {file.name for file in folder.iterdir()}
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    assert not build_kernels.build()
    assert {file.name for file in folder.iterdir()} == before - {"libhmi_kernels.so"}
    assert "the C++ kernels are not compiled: " in capsys.readouterr().err


@needs_compiler
def test_the_older_library_stays_whole_until_it_is_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    script = f"echo newer > $out; cat {folder}/libhmi_kernels.so > {seen}"
    monkeypatch.setenv("CXX", compiler(tmp_path, script))
    assert build_kernels.build()
    assert (seen.read_text(), (folder / "libhmi_kernels.so").read_text()) == ("older", "newer\n")


def test_a_missing_compiler_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_kernels.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build_kernels.sys, "platform", "linux")
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    assert not build_kernels.build()
    assert "there is no no-such-compiler; install g++ 12" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "fits", "warns"), [("cpu", True, 1), ("cpu", False, 0), ("cuda", True, 0)]
)
def test_a_runtime_warns_once_of_kernels_that_its_processor_could_run(
    device: str,
    fits: bool,
    warns: int,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kernels, "_fits_native", lambda: fits)
    monkeypatch.setattr(process, "check_setting", lambda *_: None)
    monkeypatch.setattr(process, "take_turns_often", lambda: None)
    monkeypatch.setattr(process, "configure", lambda _: None)

    class Server:
        def run(self) -> None:
            pass

    monkeypatch.setattr(process, "build_server", lambda _: Server())
    settings = RuntimeSettings.model_construct(device=device, threads=torch.get_num_threads())
    monkeypatch.setattr(RuntimeSettings, "address_policy", lambda _: None)
    with caplog.at_level(logging.WARNING):
        process.serve(settings)
    assert [record.message.count("Install g++ 12") for record in caplog.records] == [1] * warns
