"""Compiles the runtime's C++ kernels when a wheel or an editable installation is made.

They need a C++ compiler (``$CXX``, else c++) on x86-64 Linux. Without one the package installs all the same
and the runtime takes other kernels; ``hmi describe runtime`` shows which.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object

FOLDER = Path(__file__).parent / "hmi_runtime" / "adapters" / "native"
LIBRARY = FOLDER / "libhmi_kernels.so"
FLAGS = [
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-Wall", "-Wextra"),
    # GCC 12 warns of its own headers; clang does not know all of these.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-unknown-warning-option"),
    *(f"-m{name}" for name in ("fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")),
    "-mavx512bf16",
]


class KernelBuildHook(BuildHookInterface):  # type: ignore[misc]
    """Adds the compiled library to the wheel, which is then for this platform alone."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is assembled; ``version`` is "standard" or "editable"."""
        if self.target_name != "wheel" or not build():
            return
        build_data["artifacts"].append(f"/{LIBRARY.relative_to(Path(self.root))}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def build() -> bool:
    """Compile the library and return True; return False, and say why, where that is not possible.

    A library that is there is replaced at once, so that no process reads half of one.
    """
    compiler = (os.environ.get("CXX") or "c++").split()
    if sys.platform != "linux" or platform.machine() != "x86_64":
        problem = "they are for x86-64 Linux"
    elif shutil.which(compiler[0]) is None:
        problem = f"there is no {compiler[0]}; install g++ 12, clang 19 or later, or set CXX"
    else:
        digest = runpy.run_path(str(FOLDER / "library.py"))["sources_digest"]()
        sources = sorted(map(str, FOLDER.glob("*.cpp")))
        with tempfile.TemporaryDirectory(prefix=".build-", dir=FOLDER) as folder:
            made = Path(folder) / LIBRARY.name
            command = [*compiler, *FLAGS, f'-DHMI_SOURCES="{digest}"', *sources, "-o", str(made)]
            if subprocess.run(command, check=False).returncode == 0 and made.exists():
                made.replace(LIBRARY)
                return True
        problem = f"{' '.join(compiler)} failed, see above; they need g++ 12, clang 19 or later"
    LIBRARY.unlink(missing_ok=True)
    print(f"hmi: the C++ kernels are not compiled: {problem}", file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(not build())
