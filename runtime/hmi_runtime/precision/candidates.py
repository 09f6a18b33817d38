"""Which kernels a runtime may take for its frozen upper layers."""

from collections.abc import Sequence

import torch

from hmi_api.errors import InvalidInput
from hmi_api.internal.precision import PrecisionSetting
from hmi_runtime.adapters.kernels import Kernel, available_kernels


def select_kernels(kernels: Sequence[Kernel], setting: PrecisionSetting) -> list[Kernel]:
    """Return those of the machine's ``kernels`` that ``setting``, HMI_PRECISION, allows.

    Raises ``InvalidInput`` PrecisionUnsupported if there is none.
    """
    allowed = [one for one in kernels if setting in ("auto", one.precision)]
    if not allowed:
        runs = ", ".join(dict.fromkeys(one.precision for one in kernels))
        raise InvalidInput(
            "PrecisionUnsupported",
            f"HMI_PRECISION is {setting}, which this machine cannot run; it runs {runs}. Set it to one of "
            "these, or to auto, which takes the fastest that is accurate enough.",
        )
    return allowed


def check_setting(setting: PrecisionSetting, device: torch.device) -> None:
    """Raise ``InvalidInput`` PrecisionUnsupported if ``device`` cannot run the precision of the settings."""
    if setting != "auto":
        select_kernels(available_kernels(device), setting)
