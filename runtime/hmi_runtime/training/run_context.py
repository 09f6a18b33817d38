"""The context of a run: work folder, artifact store, reporter and limits."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hmi_api.internal.runs import RunProgress
from hmi_api.internal.window_counts import WindowCounts
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.common import DataRead
from hmi_runtime.artifacts.store import Store
from hmi_runtime.training.optim import Progress
from hmi_runtime.training.precision import FLOAT32, StepPrecision
from hmi_runtime.training.report import Reporter

SOURCES_SHOWN = 10

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What a run works with."""

    folder: Path
    store: Store
    reporter: Reporter
    checkpoint_seconds: float = 30.0
    mounts: Path | None = None
    """Where the ConfigMaps and volume claims that the run names are mounted; None outside a cluster."""
    data: list[DataRead] = field(default_factory=list)
    """What the run has read so far, one entry a source, for the first ``SOURCES_SHOWN`` sources."""
    window_counts: Callable[[int], WindowCounts] | None = None
    """Reads the window counts, at most so many windows; None without a control plane."""
    limits: AdapterLimits = field(default_factory=AdapterLimits)
    """The largest adapters that runtimes serve."""
    precision: StepPrecision = FLOAT32
    """The precision of training steps."""

    @property
    def cache(self) -> Path:
        """Folder for local copies of artifacts."""
        return self.folder / "artifacts"

    def record_data_read(self, reports: Iterable[DataRead]) -> None:
        """Log what was read, and include it in all further reports."""
        for report in reports:
            if len(self.data) < SOURCES_SHOWN:
                self.data.append(report)
            _LOG.info("read %s %s", report.uri, report.sentence())

    def announce(self, stage: str, metrics: Mapping[str, float] | None = None) -> None:
        """Report that a stage has begun."""
        self.progress_callback(stage)(0, 1, dict(metrics or {}))

    def progress_callback(self, stage: str) -> Progress:
        """Return a progress callback for one stage."""

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            # A loss can be infinite for a step, and JSON cannot express that.
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self.reporter.progress(
                RunProgress(stage=stage, step=step, total=total, metrics=finite, data=list(self.data))
            )

        return report
