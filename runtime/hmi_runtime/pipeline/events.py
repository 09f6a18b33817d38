"""What a pipeline tells whoever counts. The server turns these into metrics."""

from typing import Protocol

from hmi_runtime.pipeline.staging import StagedBatch


class PipelineEvents(Protocol):
    """Called from the pipeline's threads, so it must be quick and thread-safe."""

    def computed(self, batch: StagedBatch, staging_seconds: float, compute_seconds: float) -> None:
        """A batch was answered."""

    def quarantined(self) -> None:
        """An adapter whose rows kept failing is refused for a while."""


class Unobserved:
    """Counts nothing: for programs that run a pipeline without metrics."""

    def computed(self, batch: StagedBatch, staging_seconds: float, compute_seconds: float) -> None:
        """Ignore a batch."""

    def quarantined(self) -> None:
        """Ignore a quarantine."""
