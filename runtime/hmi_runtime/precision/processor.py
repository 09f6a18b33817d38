"""The fingerprint of a processor: what decides which kernels it runs, and how fast.

A recorded choice holds for equal fingerprints. It contains the vendor, because MKL and oneDNN choose code by
it; the instructions that matrix products use; the limits that ``ATEN_CPU_CAPABILITY`` and
``ONEDNN_MAX_CPU_ISA`` set; the version of torch, which brings the kernels; and whether our own were compiled.
It does not contain the clock, the number of cores or the model: machines that differ only in these use the
same kernel.
"""

import os
import platform
from pathlib import Path

import torch

from hmi_runtime.adapters.kernels import has_native

_CPU_INFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)
"""The names of /proc/cpuinfo, of x86 and of ARM."""
_LONGEST = 400


def processor_fingerprint(device: torch.device) -> str:
    """Return the fingerprint of ``device`` as text, at most 400 characters."""
    parts = _cuda(device) if device.type == "cuda" else _cpu(_CPU_INFO)
    return " ".join([*parts, f"torch-{torch.__version__}"])[:_LONGEST]


def _cuda(device: torch.device) -> list[str]:
    major, minor = torch.cuda.get_device_capability(device)
    return ["cuda", torch.cuda.get_device_name(device).replace(" ", "-"), f"sm_{major}{minor}"]


def _cpu(info: Path) -> list[str]:
    fields = _first_processor(info)
    vendor = fields.get("vendor_id") or fields.get("CPU implementer") or platform.processor() or "unknown"
    known = set((fields.get("flags") or fields.get("Features") or "").split())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return [
        *(platform.machine(), vendor),
        *(name for name in _INSTRUCTIONS if name in known),
        f"aten-{torch.backends.cpu.get_cpu_capability()}",
        *([f"onednn-{limit}"] if limit else []),
        *(["native"] if has_native() else []),
    ]


def _first_processor(info: Path) -> dict[str, str]:
    """Return the first block of /proc/cpuinfo; nothing where there is no such file."""
    try:
        block = info.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
