"""From requests to results: tokenise, look up, batch, execute.

Belongs here: batch formation (``batching``, pure), tokenising and prefetching (``preparation``), staging, the
engine of a base model with its two threads, and the ``Pipeline`` that connects them. While one batch is
computing, the next one is staged, and the one after that is tokenised and its adapters are prefetched.
Forbidden here: HTTP, the control plane, files, how bytes are cached or adapters applied.
"""

from hmi_runtime.serving.batching import BatchLimits
from hmi_runtime.serving.engine import Engine
from hmi_runtime.serving.loaded import EngineKey, LoadedAdapter, LoadedDomain
from hmi_runtime.serving.pipeline import Pipeline, PipelineLimits
from hmi_runtime.serving.worker import PipelineEvents

__all__ = [
    "BatchLimits",
    "Engine",
    "EngineKey",
    "LoadedAdapter",
    "LoadedDomain",
    "Pipeline",
    "PipelineEvents",
    "PipelineLimits",
]
