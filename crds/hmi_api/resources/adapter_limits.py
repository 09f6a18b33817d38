"""The largest adapters that an installation's runtimes serve: what is larger is refused before it is trained.

A slot of a runtime's device memory takes as much room as the largest adapter, so the limits are the
administrator's. Whoever admits, trains or serves adapters is told the same ones: by HMI_MAX_RANK,
HMI_MAX_BOTTLENECK and HMI_MAX_LABELS.
"""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from hmi_api.errors import InvalidInput
from hmi_api.resources.task_adapter import MethodType, TaskAdapterSpec
from hmi_api.settings import HmiSettings


class AdapterLimits(HmiSettings):
    """The largest adapter that every runtime serves; each field is also an ``HMI_`` environment variable."""

    model_config = SettingsConfigDict(env_prefix="HMI_", extra="ignore", frozen=True)

    max_rank: int = Field(default=32, ge=1, description="Largest LoRA rank that a slot holds.")
    max_bottleneck: int = Field(
        default=128, ge=0, description="Widest bottleneck that a slot holds; 0 for none."
    )
    max_labels: int = Field(default=256, ge=2, description="Most labels of a head that a slot holds.")

    def limits(self) -> "AdapterLimits":
        """Return the limits alone, of settings that hold further fields."""
        return AdapterLimits(**{name: getattr(self, name) for name in AdapterLimits.model_fields})

    def as_environment(self) -> dict[str, str]:
        """Return the variables that tell another process the same limits."""
        return self.variables(**self.limits().model_dump())

    def check_spec(self, spec: TaskAdapterSpec) -> None:
        """Raise ``InvalidInput`` AdapterTooLarge for a spec whose adapter no runtime would load."""
        self.check_labels(len(spec.task.labels), "spec.task.labels names")
        if spec.data is None:  # the folder of an import says how large its adapter is
            return
        size = spec.method.size or 1  # where none is asked for, one that fits is chosen
        if spec.method.type is MethodType.BOTTLENECK:
            self.check_bottleneck(size, "spec.method asks for")
        else:
            self.check_rank(size, "spec.method asks for")

    def check_rank(self, rank: int, what: str) -> None:
        """Raise ``InvalidInput`` AdapterTooLarge for a LoRA rank; ``what`` begins the message."""
        _check(rank, self.max_rank, what, "rank", "maxRank", "HMI_MAX_RANK")

    def check_bottleneck(self, width: int, what: str) -> None:
        """Raise ``InvalidInput`` AdapterTooLarge for a bottleneck's width; ``what`` begins the message."""
        _check(width, self.max_bottleneck, what, "bottleneck width", "maxBottleneck", "HMI_MAX_BOTTLENECK")

    def check_labels(self, count: int, what: str) -> None:
        """Raise ``InvalidInput`` AdapterTooLarge for a number of labels; ``what`` begins the message."""
        _check(count, self.max_labels, what, "labels", "maxLabels", "HMI_MAX_LABELS")


def _check(size: int, limit: int, what: str, kind: str, value: str, variable: str) -> None:
    if size <= limit:
        return
    told = f"{size} {kind}" if kind == "labels" else f"{kind} {size}"
    raise InvalidInput(
        "AdapterTooLarge",
        f"{what} {told}; the runtimes of this installation serve at most {limit}. Ask for less, or have the "
        f"administrator raise it (slots.{value} of every runtime pool in the chart, {variable} for hmi up).",
    )
