"""A Domain's trained parameters: window-local lower layers, gates, positions and the bridge.

Word embeddings belong to the base model and are shared, so they are neither trained nor stored here.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from hmi_api.errors import Damaged, InvalidInput
from hmi_runtime.models.architecture import EncoderConfig, attention_bias, split_heads
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.families import architecture_of
from hmi_runtime.models.packed_bridge import PackedBridge
from hmi_runtime.models.packing import pad_tokens, positions_of, starts_of
from hmi_runtime.models.windows import ABSENT, compose, trigrams

_POSITION_SPREAD = 0.02


WEIGHTS_FILE = "layers.safetensors"
CONFIG_FILE = "layers.json"
# A window's three tokens start at the position after the opening token, which every pretraining row has used.
_FIRST_WINDOW_POSITION = 1


class BridgeAttention(nn.Module):
    """The bridge: residual attention of ``heads`` heads of ``head_size`` dimensions over width D.

    Through it distant tokens exchange information that windows cut off. It costs about a twelfth of a layer.

    ``x + out(attention(qkv(norm(x) + position)))``; ``out`` starts at zero, so a new bridge changes nothing.
    """

    def __init__(self, width: int, positions: int, heads: int, head_size: int, norm_eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.position = nn.Parameter(torch.zeros(positions, width))  # (P, D)
        self.qkv = nn.Linear(width, 3 * heads * head_size)
        self.out = nn.Linear(heads * head_size, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def initialise(self, encoder: Encoder, generator: torch.Generator) -> None:
        """Initialise from the encoder's positions, scaled to a normalised input."""
        position = encoder.position_table()  # (P, D)
        with torch.no_grad():
            self.position.copy_(position * (_POSITION_SPREAD * 10 / position.std().clamp_min(1e-6)))
            nn.init.normal_(self.qkv.weight, std=_POSITION_SPREAD * 2, generator=generator)
            nn.init.zeros_(self.qkv.bias)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return (B, T, D) for ``x`` (B, T, D) under an additive attention ``bias`` (B, 1, 1, T)."""
        mixed = self.qkv(self.norm(x) + self.position[: x.shape[1]])  # (B, T, 3*H*S)
        query, key, value = (split_heads(part, self.heads) for part in mixed.chunk(3, dim=2))  # (B, H, T, S)
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (B, H, T, S)
        return x + self.out(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DomainLayersConfig:
    """Sizes of a Domain's layers."""

    encoder: EncoderConfig
    split: int
    bridge_heads: int
    bridge_head_size: int


class DomainLayers(nn.Module):
    """Layers 0..split of an encoder, run on windows of three tokens, with gates, positions and bridge."""

    def __init__(self, config: DomainLayersConfig, base: Encoder) -> None:
        """Copy the lower layers of ``base``; its word embeddings (V, D) are not copied."""
        super().__init__()
        self.config = config
        encoder = config.encoder
        self.architecture = architecture_of(encoder)
        width = encoder.width
        self.word = base.word.weight.detach()  # (V, D), a plain attribute: shared, frozen, not in the state
        self.window_position = nn.Parameter(torch.zeros(3, width))
        self.embedding_norm = nn.LayerNorm(width, eps=encoder.norm_eps)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in list(base.layers)[: config.split])
        self.gates = nn.Parameter(torch.tensor([0.0, 1.0, 0.0])[:, None].repeat(1, width))  # (3, D)
        self.position = nn.Parameter(torch.zeros(encoder.positions, width))  # (P, D)
        self.bridge = (
            BridgeAttention(
                width, encoder.positions, config.bridge_heads, config.bridge_head_size, encoder.norm_eps
            )
            if config.bridge_heads
            else None
        )
        self._packed: dict[torch.dtype, PackedBridge] = {}
        self._layers_for_serving: Callable[[Tensor, Tensor], Tensor] | None = None

    @classmethod
    def from_encoder(
        cls, encoder: Encoder, split: int, *, bridge_heads: int, bridge_head_size: int, seed: int = 0
    ) -> "DomainLayers":
        """Return layers initialised from the encoder's lower ``split`` layers.

        Raises ``InvalidInput`` SplitTooDeep unless at least one layer is left above the split.
        """
        check_split(encoder.config, split)
        config = DomainLayersConfig(encoder.config, split, bridge_heads, bridge_head_size)
        made = cls(config, encoder)
        start = _FIRST_WINDOW_POSITION
        with torch.no_grad():
            if encoder.position is not None:  # rotary layers encode positions themselves
                made.window_position.copy_(encoder.position.weight[start : start + 3])
            if encoder.segment is not None:  # every text is of the first segment: fold it in
                made.window_position.add_(encoder.segment.weight[0])
            made.embedding_norm.load_state_dict(encoder.embedding_norm.state_dict())
        if made.bridge is not None:
            made.bridge.initialise(encoder, torch.Generator().manual_seed(seed))
        return made.requires_grad_(True)

    def window_outputs(self, windows: Tensor) -> Tensor:
        """Return the gated outputs (W, 3, D) for ``windows`` (W, 3) int64, of left, centre and right token.

        A table stores these. The output of an ``ABSENT`` token is zero, and no other output depends on it.
        """
        present = windows != ABSENT  # (W, 3)
        x = functional.embedding(windows.clamp_min(0), self.word) + self.window_position  # (W, 3, D)
        x = self._run_layers(self.embedding_norm(x), present)
        gated: Tensor = x * self.gates * present[:, :, None]
        return gated

    def _run_layers(self, x: Tensor, present: Tensor) -> Tensor:
        """Return the last states (W, 3, D) of windows ``x`` (W, 3, D)."""
        if self._layers_for_serving is not None:
            return self._layers_for_serving(x, present)
        contexts = self.architecture.contexts(present, x.dtype)[: len(self.layers)]
        for layer, context in zip(self.layers, contexts, strict=True):
            x = layer(x, context)
        return x

    def compute_windows_by(self, run_layers: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Let ``run_layers`` stand for the layers in ``window_outputs``, for serving.

        It gets the embeddings of windows (W, 3, D) and which of their tokens are present (W, 3) bool, and
        returns the last states (W, 3, D) of these.
        """
        self._layers_for_serving = run_layers

    def combine_windows(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """Return the representation at the split (B, T, D) from windows' outputs (B, T, 3, D).

        Composes neighbours, adds positions and applies the bridge. ``mask`` (B, T) bool; outputs at padding
        must be zero.
        """
        x = compose(outputs) + self.position[: outputs.shape[1]]  # (B, T, D)
        if self.bridge is None:
            return x
        bridged: Tensor = self.bridge(x, attention_bias(mask, x.dtype))
        return bridged

    def combine_tokens(
        self, outputs: Tensor, lengths: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the representation at the split (N, D) float32 of texts without padding; for serving.

        ``outputs`` (N, 3, D) float32 are the windows' outputs, text after text. Those that lie outside of a
        text are set to zero, so that no text has an effect on its neighbour. The layers must be frozen; on
        CPUs the bridge's products are computed in ``dtype``.
        """
        starts = starts_of(lengths)
        edges = np.concatenate([3 * starts, 3 * (starts + lengths) - 1])  # of (N * 3, D)
        outputs.flatten(0, 1).index_fill_(0, torch.from_numpy(edges).to(outputs.device), 0.0)
        positions = torch.from_numpy(positions_of(lengths)).to(outputs.device)
        x = self.position.index_select(0, positions)  # (N, D)
        x += outputs[:, 1]
        x[:-1] += outputs[1:, 0]
        x[1:] += outputs[:-1, 2]
        if self.bridge is None:
            return x
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return self._packed_bridge(self.bridge, dtype)(x, positions, lengths)
        padded, mask = pad_tokens(x, lengths, max(lengths))
        bridged: Tensor = self.bridge(padded, attention_bias(mask, x.dtype))[mask]
        return bridged

    def _packed_bridge(self, bridge: BridgeAttention, dtype: torch.dtype) -> PackedBridge:
        found = self._packed.get(dtype)
        if found is None:  # two threads may both make one, which are equal
            found = self._packed[dtype] = PackedBridge(bridge, dtype)
        return found

    def represent(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the representation at the split (B, T, D) of ``ids`` (B, T) int64, ``mask`` (B, T) bool.

        This is the model that training trains. Any lookup must equal it.
        """
        windows = trigrams(ids, mask)[mask]  # (N, 3)
        unique, place = torch.unique(windows, dim=0, return_inverse=True)  # (W, 3), (N,)
        values = self.window_outputs(unique)[place]  # (N, 3, D)
        outputs = values.new_zeros((*ids.shape, *values.shape[1:]))  # (B, T, 3, D)
        outputs[mask] = values
        return self.combine_windows(outputs, mask)

    def save(self, folder: Path) -> None:
        """Write weights and sizes into ``folder``, which must exist."""
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=1, sort_keys=True))

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> "DomainLayers":
        """Load layers that ``save`` wrote, frozen and in evaluation mode.

        Raises ``InvalidInput`` LayersForAnotherBase when they were made for another encoder, and
        ``Damaged`` LayersIncomplete when tensors are missing or have other shapes, LayersNotFinite when a
        value is infinite or not a number.
        """
        raw = json.loads((folder / CONFIG_FILE).read_text())
        config = DomainLayersConfig(
            EncoderConfig(**raw["encoder"]), raw["split"], raw["bridge_heads"], raw["bridge_head_size"]
        )
        if config.encoder != encoder.config:
            raise InvalidInput(
                "LayersForAnotherBase",
                f"These layers are for {config.encoder}, the base model is {encoder.config}; "
                "train the Domain on this base model.",
            )
        made = cls(config, encoder)
        try:
            made.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except RuntimeError as error:
            raise Damaged("LayersIncomplete", f"{WEIGHTS_FILE} does not fit its sizes: {error}") from error
        for name, tensor in made.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise Damaged(
                    "LayersNotFinite",
                    f"{name} in {WEIGHTS_FILE} has values that are infinite or not numbers; train the "
                    "Domain again, with a lower training.learningRate.",
                )
        return made.requires_grad_(False).eval()


def check_split(config: EncoderConfig, split: int) -> None:
    """Raise ``InvalidInput`` SplitTooDeep unless 1 <= split < layers."""
    if not 1 <= split < config.layers:
        raise InvalidInput(
            "SplitTooDeep",
            f"split {split} leaves no upper layer: the base model has {config.layers} layers; "
            f"choose 1 to {config.layers - 1}.",
        )
