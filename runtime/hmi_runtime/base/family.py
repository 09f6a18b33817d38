"""What tells one family of checkpoints from another: names in its files, and the architecture they are of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hmi_runtime.base.architecture import Architecture
from hmi_runtime.base.config import EncoderConfig

RawConfig = Mapping[str, Any]
"""A checkpoint's config.json."""


@dataclass(frozen=True)
class Family:
    """How a family's checkpoints name their tensors and sizes."""

    name: str
    architecture: Callable[[EncoderConfig], Architecture]
    prefix: str
    """What a task model of transformers puts before every name, such as ``bert.``."""
    layer: str
    """Path of layer ``{}`` under the prefix."""
    modules: Mapping[str, str]
    """Canonical module name -> path under a layer."""
    embeddings: Mapping[str, str]
    """Canonical module outside the layers -> path under the prefix."""
    keys: Mapping[str, str]
    """Canonical size -> key in config.json."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Path under a layer -> the modules whose rows lie in it, one block after another."""
    further_sizes: Callable[[RawConfig], dict[str, Any]] = lambda raw: {}
    """Sizes that only this family has. Raises ``InvalidInput`` BaseModelUnsupported."""
    norm_eps: float = 1e-12
    """Of a config.json that names none."""
    may_lack_biases: bool = False
    """Whether biases may be missing from its files; they are zero then."""
    counts_from_pad: bool = False
    """True where the first token's position is pad + 1, so that the rows before it are never used."""
    pooler: str | None = None

    def module_path(self, layer: int, module: str) -> str:
        """Return the path of a layer's module in a transformers task model, prefix included."""
        return f"{self.prefix}{self.layer.format(layer)}.{self.modules[module]}"
