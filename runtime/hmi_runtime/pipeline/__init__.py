"""From requests to answers: tokenise, look up, batch, execute.

Belongs here: fair queues and batch formation (pure: ``fair``, ``batches``), preparation, staging, the engine
of a base model, its two threads, and the ``Pipeline`` that ties them. While one batch computes, the next is
staged and the one after that is tokenised and its adapters are brought to memory.
Forbidden here: HTTP, the control plane, files, how bytes are cached or adapters applied.
"""

from hmi_runtime.pipeline.batches import BatchLimits
from hmi_runtime.pipeline.domains import ServedDomain
from hmi_runtime.pipeline.engine import Engine, EngineKey
from hmi_runtime.pipeline.events import PipelineEvents
from hmi_runtime.pipeline.pipeline import Pipeline, PipelineLimits
from hmi_runtime.pipeline.rows import Route, row_error

__all__ = [
    "BatchLimits",
    "Engine",
    "EngineKey",
    "Pipeline",
    "PipelineEvents",
    "PipelineLimits",
    "Route",
    "ServedDomain",
    "row_error",
]
