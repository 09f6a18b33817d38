"""The hierarchical model (hPLM) for encoders, in plain differentiable torch.

Belongs here: windows, the window-local lower layers, their composition, the bridge and the upper layers:
what training trains and what every fast path is compared with. Forbidden here: tables, adapters,
batching, files other than a module's own weights.
"""

from hmi_runtime.model.bridge import Bridge
from hmi_runtime.model.domain_layers import DomainLayers, DomainLayersConfig
from hmi_runtime.model.upper import UpperLayers
from hmi_runtime.model.windows import ABSENT, compose, contributions, trigrams

__all__ = [
    "ABSENT",
    "Bridge",
    "DomainLayers",
    "DomainLayersConfig",
    "UpperLayers",
    "compose",
    "contributions",
    "trigrams",
]
