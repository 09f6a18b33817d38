"""Adapters for elsewhere, as PEFT folders."""

from pathlib import Path


def export_artifact(artifact: str, artifacts: str, out: Path) -> Path:
    from hmi_runtime.adapters.peft_format import export_peft

    return out
