"""The largest adapters that an installation's runtimes serve; larger ones are refused before training.

A slot of a runtime's device memory takes as much room as the largest adapter, so the limits are the
administrator's. Operator, trainers and runtimes get the same ones, in HMI_MAX_RANK, HMI_MAX_BOTTLENECK and
HMI_MAX_LABELS.
"""

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import MethodType, TaskAdapterSpec
from hmi_api.settings import HmiSettings

AdapterSize = Literal["rank", "bottleneck", "labels"]


class AdapterLimits(HmiSettings):
    """The largest adapter that every runtime serves; each field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(env_prefix="HMI_", extra="ignore", frozen=True)

    max_rank: int = Field(default=32, ge=1, description="Largest LoRA rank of a slot.")
    max_bottleneck: int = Field(default=128, ge=0, description="Widest bottleneck of a slot; 0 for none.")
    max_labels: int = Field(default=256, ge=2, description="Most labels of a slot.")

    def limits(self) -> "AdapterLimits":
        """Return the limits alone, of settings that have further fields."""
        return AdapterLimits(**{name: getattr(self, name) for name in AdapterLimits.model_fields})

    def as_environment(self) -> dict[str, str]:
        """Return the variables that give another process the same limits."""
        return self.variables(**self.limits().model_dump())

    def check_spec(self, spec: TaskAdapterSpec) -> None:
        """Raise ``InvalidInput`` AdapterTooLarge for a spec whose adapter no runtime would load."""
        self.check("labels", len(spec.task.labels), "spec.task.labels names")
        if spec.data is None:  # the folder of an import says how large its adapter is
            return
        kind: AdapterSize = "bottleneck" if spec.method.type is MethodType.BOTTLENECK else "rank"
        self.check(
            kind, spec.method.size or 1, "spec.method requests"
        )  # without a size, one that fits is chosen

    def check(self, kind: AdapterSize, size: int, what: str) -> None:
        """Raise ``InvalidInput`` AdapterTooLarge for a size above its limit; ``what`` begins the message."""
        limit: int = getattr(self, f"max_{kind}")
        if size > limit:
            named = {
                "rank": f"rank {size}",
                "bottleneck": f"bottleneck width {size}",
                "labels": f"{size} labels",
            }
            raise InvalidInput(
                "AdapterTooLarge",
                f"{what} {named[kind]}; the runtimes of this installation serve at most {limit}. Lower "
                f"it, or have the administrator raise the limit: slots.max{kind.capitalize()} of every "
                f"runtime pool in the chart, HMI_MAX_{kind.upper()} for hmi up.",
            )
