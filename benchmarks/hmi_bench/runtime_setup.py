"""Set-up of a runtime for the benchmarks: a Domain with its table, and adapters, in an artifact store.

Values are random if they do not change the time; files, digests and references are real.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hmi_api.artifacts import ArtifactKind
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_api.resources.domain import BaseModelRef, OnMiss
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.source import BaseModel
from hmi_runtime.models.windows import pack, trigrams
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.serving.cores import take_turns_often
from hmi_runtime.tables.table import PlotTable

_DOMAIN_KEY = "bench/domain"
_BRIDGE_HEADS, _BRIDGE_HEAD_SIZE = 4, 24
_LONGEST_TEXT = 512
_COMPUTED_AT_ONCE = 1024  # windows


@dataclass(frozen=True)
class PublishedDomain:
    """A Domain in a store, and its base model."""

    base: BaseModel
    store: ArtifactStore
    serving: DomainServing

    @property
    def split(self) -> int:
        """Index of the first upper layer."""
        return self.serving.version.split

    @property
    def layers_digest(self) -> str:
        """Digest of its layers, which adapters refer to."""
        return self.serving.version.layers.digest

    @property
    def nbytes(self) -> int:
        """Bytes of the artifacts of its layers and table."""
        version = self.serving.version
        return version.layers.bytes + sum(table.bytes for table in version.tables)

    def publish(self, key: str, weights: AdapterWeights, version: int = 1) -> AdapterServing:
        """Publish an adapter and return its entry of a desired state; ``key`` is tenant/adapter."""
        with TemporaryDirectory() as folder:
            weights.save(Path(folder))
            ref = self.store.publish(
                ArtifactKind.ADAPTER,
                Path(folder),
                base_digest=weights.base_digest,
                layers_digest=weights.layers_digest,
                config=weights.config(),
            )
        return AdapterServing(
            key=key,
            version=version,
            task_type=weights.task,
            labels=list(weights.labels),
            artifact=ref,
            domain=self.serving.key,
            domain_version=self.serving.version.version,
        )


def publish_domain(
    base: BaseModel, store: ArtifactStore, texts: Sequence[str], *, other_entries: int = 50_000
) -> PublishedDomain:
    """Publish a Domain split at half, with a table that contains every window of ``texts``.

    It also has ``other_entries`` random windows with random values, so that lookups search a table of
    realistic size.
    """
    split = base.config.layers // 2
    layers = DomainLayers.from_encoder(
        base.encoder(), split, bridge_heads=_BRIDGE_HEADS, bridge_head_size=_BRIDGE_HEAD_SIZE
    )
    layers.requires_grad_(False).eval()
    with TemporaryDirectory() as folder:
        layers.save(Path(folder))
        layers_ref = store.publish(ArtifactKind.LAYERS, Path(folder), base_digest=base.digest)
    windows = distinct_windows(base, texts)  # (W, 3)
    with torch.inference_mode():
        outputs = torch.cat(
            [layers.window_outputs(piece) for piece in torch.split(windows, _COMPUTED_AT_ONCE)]
        )  # (W, 3, D)
    table = make_table(
        windows, outputs, layers, layers_ref.digest, other_entries=other_entries, absent=windows[:0]
    )
    with TemporaryDirectory() as folder:
        table.save(Path(folder))
        table_ref = store.publish(
            ArtifactKind.TABLE, Path(folder), base_digest=base.digest, layers_digest=layers_ref.digest
        )
    version = DomainVersionView(
        version=1,
        spec_digest="sha256:benchmark",
        base=BaseModelRef(uri=base.uri),
        base_digest=base.digest,
        split=split,
        layers=layers_ref,
        tables=[table_ref],
        on_miss=OnMiss.COMPUTE,
        entries=table.entries,
        coverage=1.0,
    )
    return PublishedDomain(base, store, DomainServing(key=_DOMAIN_KEY, version=version))


def runtime_settings(folder: Path, **settings: Any) -> RuntimeSettings:
    """Return the settings of a runtime whose store and local copies are in ``folder``.

    It computes on as many cores as the benchmark has threads. The control plane's address and token are not
    used.
    """
    return RuntimeSettings(
        control_plane_url="http://127.0.0.1:9",
        internal_token="no-control-plane-in-a-benchmark",
        artifacts=str(folder / "store"),
        cache_dir=folder / "cache",
        threads=torch.get_num_threads(),
        **settings,
    )


@contextmanager
def serving(
    settings: RuntimeSettings, store: ArtifactStore, metrics: RuntimeMetrics | None = None
) -> Iterator[AdapterLoader]:
    """Run the loader and pipeline of a runtime process, without its HTTP server."""
    take_turns_often()  # as a runtime process does
    counts = metrics or RuntimeMetrics()
    with ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="load") as loaders:
        loader = AdapterLoader(
            settings, store, loaders, cache_events=counts, pipeline_events=counts, table_events=counts
        )
        try:
            yield loader
        finally:
            loader.pipeline.drain(settings.drain_seconds)


def make_table(
    windows: Tensor,
    outputs: Tensor,
    layers: DomainLayers,
    layers_digest: str,
    *,
    other_entries: int,
    absent: Tensor,
) -> PlotTable:
    """Return a table of ``windows`` (W, 3) int64 with ``outputs`` (W, 3, D), and of random other entries.

    None of the windows ``absent`` (A, 3) is in it.
    """
    config = layers.config.encoder
    random = torch.Generator().manual_seed(1)
    others = torch.randint(1, config.vocab_size, (other_entries, 3), generator=random)
    keys, other_keys = pack(windows, config.vocab_size), torch.unique(pack(others, config.vocab_size))
    other_keys = other_keys[~torch.isin(other_keys, torch.cat([keys, pack(absent, config.vocab_size)]))]
    other_outputs = torch.randn(len(other_keys), 3, config.width, generator=random) * 0.3
    return PlotTable.from_outputs(
        torch.cat([keys, other_keys]),
        torch.cat([outputs.float(), other_outputs]),
        vocab_size=config.vocab_size,
        layers_digest=layers_digest,
    )


def distinct_windows(base: BaseModel, texts: Sequence[str]) -> Tensor:
    """Return the distinct windows (W, 3) of ``texts``."""
    found = []
    for encoding in base.tokenizer.encode(texts, _LONGEST_TEXT):
        ids = torch.tensor([encoding.ids])  # (1, T)
        found.append(trigrams(ids, torch.ones_like(ids, dtype=torch.bool))[0])
    unique: Tensor = torch.unique(torch.cat(found), dim=0)
    return unique
