"""Small tables of a corpus of four rows, over random layers."""

from functools import cache
from pathlib import Path

import torch

from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.windows import unpack
from hmi_runtime.tables.build import BuildReport, build_table
from hmi_runtime.tables.table import PlotTable

torch.set_num_threads(1)

VOCABULARY = 20
LAYERS = "sha256:layers"
CORPUS = [[1, 5, 6, 7, 2], [1, 5, 6, 8, 2], [1, 5, 2], [1, 5, 6, 7, 2]]
Window = tuple[int, int, int]


@cache
def layers() -> DomainLayers:
    torch.manual_seed(0)
    sizes = EncoderConfig("bert", 2, 8, 2, 16, VOCABULARY, 16, 2, 1e-12, "gelu", 0, 1, 2)
    made = DomainLayers.from_encoder(Encoder(sizes), 1, bridge_heads=0, bridge_head_size=8)
    torch.nn.init.normal_(made.gates)
    return made.requires_grad_(False).eval()


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(len(row) for row in rows)) < torch.tensor([[len(row)] for row in rows])
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids, mask


def build(folder: Path, **options: object) -> tuple[PlotTable, BuildReport]:
    folder.mkdir(exist_ok=True)
    settings = {"max_entries": 1000, "min_frequency": 1, "layers_digest": LAYERS, **options}
    batches = [padded(CORPUS[:2]), padded(CORPUS[2:])]
    report = build_table(folder, batches, layers(), **settings)  # type: ignore[arg-type]
    return PlotTable.load(folder), report


def counted(table: PlotTable) -> dict[Window, int]:
    windows = unpack(table.keys, VOCABULARY).tolist()
    return {
        (left, centre, right): count
        for (left, centre, right), count in zip(windows, table.counts.tolist(), strict=True)
    }
