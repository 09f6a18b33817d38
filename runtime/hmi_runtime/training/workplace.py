"""Where a run works and whom it tells."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hmi_api.internal.runs import RunProgress
from hmi_api.resources.adapter_limits import AdapterLimits
from hmi_api.resources.common import DataRead
from hmi_runtime.artifacts import Store
from hmi_runtime.training.descent import Progress
from hmi_runtime.training.report import Reporter

SOURCES_SHOWN = 10

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workplace:
    """A run's folder, the artifact store and the reporter."""

    folder: Path
    store: Store
    reporter: Reporter
    checkpoint_seconds: float = 30.0
    mounts: Path | None = None
    """Where ConfigMaps and volume claims that the run names are mounted; None where none can be."""
    data: list[DataRead] = field(default_factory=list)
    """What the run has read so far, source by source; of the first few sources."""
    limits: AdapterLimits = field(default_factory=AdapterLimits)
    """The largest adapters that runtimes serve."""

    @property
    def cache(self) -> Path:
        """Local copies of artifacts that the run reads."""
        return self.folder / "artifacts"

    def has_read(self, reports: Iterable[DataRead]) -> None:
        """Log what was read, and tell it with all progress from now on."""
        for report in reports:
            if len(self.data) < SOURCES_SHOWN:
                self.data.append(report)
            _LOG.info("read %s %s", report.uri, report.sentence())

    def say(self, stage: str) -> Progress:
        """Return a progress callback for one stage."""

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            # A loss may be infinite for a moment, and JSON has no such number.
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self.reporter.progress(
                RunProgress(stage=stage, step=step, total=total, metrics=finite, data=list(self.data))
            )

        return report
