"""Where a run works and whom it tells."""

import math
from dataclasses import dataclass
from pathlib import Path

from hmi_api.wire import RunProgress
from hmi_runtime.artifacts import Store
from hmi_runtime.training.descent import Progress
from hmi_runtime.training.report import Reporter


@dataclass(frozen=True)
class Workplace:
    """A run's folder, the artifact store and the reporter."""

    folder: Path
    store: Store
    reporter: Reporter
    checkpoint_seconds: float = 30.0
    mounts: Path | None = None
    """Where ConfigMaps and volume claims that the run names are mounted; None where none can be."""

    @property
    def cache(self) -> Path:
        """Local copies of artifacts that the run reads."""
        return self.folder / "artifacts"

    def say(self, stage: str) -> Progress:
        """Return a progress callback for one stage."""

        def report(step: int, total: int, metrics: dict[str, float]) -> None:
            # A loss may be infinite for a moment, and JSON has no such number.
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self.reporter.progress(RunProgress(stage=stage, step=step, total=total, metrics=finite))

        return report
