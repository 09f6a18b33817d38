"""Compiles the runtime's C++ kernels when a wheel or an editable installation is made.

They need a C++ compiler (``$CXX``, else c++) on x86-64 Linux. Without one the package installs all the same
and the runtime takes other kernels; ``hmi describe runtime`` shows which.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
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
    # GCC 12 warns of its own headers.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
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
    """Compile the library and return True; return False, and say why, where that is not possible."""
    compiler = os.environ.get("CXX") or "c++"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        problem = "they are for x86-64 Linux"
    elif shutil.which(compiler.split()[0]) is None:
        problem = f"there is no {compiler}; install g++ 12 or clang 16, or set CXX"
    else:
        command = [*compiler.split(), *FLAGS, *sorted(map(str, FOLDER.glob("*.cpp"))), "-o", str(LIBRARY)]
        if subprocess.run(command, check=False).returncode == 0:
            return True
        problem = f"{compiler} failed, see above; they need g++ 12 or clang 16"
    LIBRARY.unlink(missing_ok=True)
    print(f"hmi: the C++ kernels are not compiled: {problem}", file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(not build())
