"""What this process has loaded: engines, domain versions and adapters, each shared by all that need it."""

import logging
import threading
import weakref
from collections import Counter, defaultdict
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import torch

from hmi_api.artifacts import ArtifactRef
from hmi_api.errors import Damaged, NotReady
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_runtime.adapters.batched import UpperExecutor
from hmi_runtime.adapters.calibration import calibration_sample
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.quantized import pays_int8
from hmi_runtime.adapters.slots import SlotPool
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.artifacts import ArtifactStore
from hmi_runtime.base import Encoder, load_base
from hmi_runtime.cache import AdapterCache, AdapterId, CacheEvents, DiskTier
from hmi_runtime.cache.host_copy import copy_to_host
from hmi_runtime.model import DomainLayers, UpperLayers
from hmi_runtime.pipeline import Engine, EngineKey, Pipeline, PipelineEvents, Route, ServedDomain
from hmi_runtime.plot import PlotTable, TreeLookup
from hmi_runtime.server.settings import RuntimeSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter that passed its checks: everything a route needs."""

    engine: EngineKey
    route: Route
    artifact: ArtifactRef
    pinned: bool


class Residency:
    """Loads what is wanted and wires it into the cache and the pipeline. Thread-safe.

    ``load`` does the slow part, on any thread; ``serve`` and ``remove`` only change over and are quick.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        store: ArtifactStore,
        loaders: Executor,
        *,
        cache_events: CacheEvents,
        pipeline_events: PipelineEvents,
    ) -> None:
        self._settings = settings
        self._device = torch.device(settings.device)
        self.disk = DiskTier(settings.cache_dir, settings.disk_budget, store.fetch, cache_events)
        self.cache: AdapterCache[AdapterWeights] = AdapterCache(
            self._read_adapter,
            loaders,
            host_limit=settings.host_budget,
            retry_after=settings.failed_load_retry_seconds,
            events=cache_events,
        )
        self.pipeline = Pipeline(
            self.cache,
            settings.pipeline_limits,
            tokenizer_threads=settings.tokenizer_threads,
            events=pipeline_events,
        )
        self._served: dict[AdapterId, LoadedAdapter] = {}
        self._artifact_users: Counter[str] = Counter()
        # Weak: layers and tables live as long as a domain version that a route, or a batch under way, uses.
        self._domains: weakref.WeakValueDictionary[tuple[str, int], ServedDomain] = (
            weakref.WeakValueDictionary()
        )
        self._layers: weakref.WeakValueDictionary[str, DomainLayers] = weakref.WeakValueDictionary()
        self._tables: weakref.WeakValueDictionary[str, PlotTable] = weakref.WeakValueDictionary()
        self._mapped_bytes: Counter[str] = Counter()
        # Re-entrant: a finalizer may run on a thread that holds it.
        self._guard = threading.RLock()
        self._locks: defaultdict[object, threading.Lock] = defaultdict(threading.Lock)

    # --- adapters -----------------------------------------------------------------------------------

    def load(self, adapter: AdapterServing, domain: DomainServing) -> LoadedAdapter:
        """Bring an adapter's artifact to disk, check it, and load the domain it stands on.

        Raises ``HmiError`` with the reason why it cannot be served.
        """
        engine = self._engine(domain.version)
        served_domain = self._domain(domain, engine)
        weights = self._read(adapter.artifact)
        check_adapter(
            weights,
            engine.base.config,
            engine.key.split,
            base_digest=engine.key.base_digest,
            layers_digest=served_domain.layers_digest,
        )
        # A slot is written at the first request; whether it can be must be known before "ready" is said.
        engine.executor.pool.check_fits(weights)
        if weights.labels != tuple(adapter.labels):
            raise Damaged(
                "AdapterLabels",
                f"The artifact of {adapter.key} names labels {list(weights.labels)}, the catalog "
                f"{adapter.labels}; train it again.",
            )
        route = Route(
            AdapterId.of(adapter),
            adapter.task_type,
            weights.labels,
            served_domain,
            weights.entity_scheme,
            adapter.tenant_id,
        )
        return LoadedAdapter(engine.key, route, adapter.artifact, adapter.pinned)

    def serve(self, loaded: LoadedAdapter) -> None:
        """Answer for an adapter with this version from the next row on. O(1); reads nothing."""
        adapter = loaded.route.adapter
        with self._guard:
            if adapter not in self._served:
                self._artifact_users[loaded.artifact.digest] += 1
            self._served[adapter] = loaded
        self.cache.register(adapter, loaded.artifact, pinned=loaded.pinned)
        self.pipeline.set_route(loaded.engine, loaded.route)
        if loaded.pinned:
            self.cache.hold(adapter, lambda error: None if error else self.cache.release(adapter))

    def stop_routing(self, key: str) -> None:
        """Take no new rows for an adapter."""
        self.pipeline.remove_route(key)

    def forget(self, adapter: AdapterId) -> None:
        """Drop a version's tensors and its copy on disk once nothing uses them."""
        with self._guard:
            loaded = self._served.pop(adapter, None)
            if loaded is None:
                return
            digest = loaded.artifact.digest
            self._artifact_users[digest] -= 1
            last = self._artifact_users[digest] <= 0
            if last:
                del self._artifact_users[digest]
        self.cache.forget(adapter)
        if last:
            self.disk.erase(digest)

    def served(self, adapter: AdapterId) -> LoadedAdapter:
        """Return what serves a version; ``KeyError`` when nothing does."""
        return self._served[adapter]

    @property
    def registered(self) -> int:
        """Adapter versions that are served."""
        return len(self._served)

    def _read_adapter(self, _: AdapterId, artifact: ArtifactRef) -> AdapterWeights:
        """Read an adapter for the host tier, on a loader thread; ``load`` has checked the same bytes."""
        return copy_to_host(self._read(artifact), pinned=self._device.type == "cuda")

    def _read(self, artifact: ArtifactRef) -> AdapterWeights:
        path = self.disk.acquire(artifact)
        try:
            return AdapterWeights.load(path)
        finally:
            self.disk.release(artifact.digest)

    # --- domains ------------------------------------------------------------------------------------

    def _domain(self, wanted: DomainServing, engine: Engine) -> ServedDomain:
        view = wanted.version
        key = (wanted.key, view.version)
        with self._lock(key):
            domain = self._domains.get(key)
            if domain is None:
                layers = self._shared_layers(view.layers, engine)
                tables = [self._shared_table(ref) for ref in view.tables]
                lookup = TreeLookup(tables, layers, layers_digest=view.layers.digest, on_miss=view.on_miss)
                domain = ServedDomain(wanted.key, view.version, lookup)
                self._domains[key] = domain
                log.info("domain %s@%d loaded, %d tables", wanted.key, view.version, len(tables))
            return domain

    def _shared_layers(self, ref: ArtifactRef, engine: Engine) -> DomainLayers:
        with self._lock(ref.digest):
            layers = self._layers.get(ref.digest)
            if layers is None:
                path = self._map(ref)
                try:
                    layers = DomainLayers.load(path, engine.encoder).to(self._device)
                except BaseException:
                    self._unmap(ref)
                    raise
                self._layers[ref.digest] = layers
                weakref.finalize(layers, self._unmap, ref)
            return layers

    def _shared_table(self, ref: ArtifactRef) -> PlotTable:
        with self._lock(ref.digest):
            table = self._tables.get(ref.digest)
            if table is None:
                path = self._map(ref)
                try:
                    table = PlotTable.load(path)
                except BaseException:
                    self._unmap(ref)
                    raise
                self._tables[ref.digest] = table
                weakref.finalize(table, self._unmap, ref)
            return table

    def _map(self, ref: ArtifactRef) -> Path:
        """Count an artifact against the tables' budget; bring it to disk, where it stays while mapped."""
        with self._guard:
            used = self._mapped_bytes.total()
            if used + ref.bytes > self._settings.table_budget:
                raise NotReady(
                    "TableBudgetFull",
                    f"{ref.uri} takes {ref.bytes} bytes, {used} of {self._settings.table_budget} are in use; "
                    "raise HMI_TABLE_BUDGET, or place it on another runtime.",
                )
            self._mapped_bytes[ref.digest] = ref.bytes
        try:
            return self.disk.acquire(ref)
        except BaseException:
            with self._guard:
                del self._mapped_bytes[ref.digest]
            raise

    def _unmap(self, ref: ArtifactRef) -> None:
        with self._guard:
            self._mapped_bytes.pop(ref.digest, None)
        self.disk.release(ref.digest)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of layers and tables that are loaded."""
        with self._guard:
            return self._mapped_bytes.total()

    # --- engines ------------------------------------------------------------------------------------

    def _engine(self, version: DomainVersionView) -> Engine:
        key = EngineKey(version.base_digest, version.split)
        with self._lock(key):
            engine = self.pipeline.engine(key)
            if engine is None:
                engine = self._make_engine(key, version)
                self.pipeline.add_engine(engine)
                log.info(
                    "base model %s split at %d loaded, its upper layers in %s",
                    version.base.uri,
                    version.split,
                    engine.executor.precision,
                )
            return engine

    def _make_engine(self, key: EngineKey, version: DomainVersionView) -> Engine:
        base = load_base(version.base.uri, version.base.revision, expected_digest=version.base_digest)
        encoder = base.encoder().to(self._device)
        upper = UpperLayers(encoder, version.split)
        limits = self._settings.slot_limits
        slot_bytes = SlotPool.slot_bytes(base.config, version.split, limits)
        slots = min(self._settings.device_slots, self._settings.device_budget // slot_bytes)
        if slots < 1:
            raise NotReady(
                "DeviceBudgetFull",
                "Not one adapter slot fits in HMI_DEVICE_BUDGET; raise it, or lower HMI_MAX_RANK.",
            )
        pool = SlotPool(upper, slots, limits, self._device)
        return Engine(
            key=key,
            base=base,
            encoder=encoder,
            executor=self._make_executor(encoder, upper, pool),
            slots=self.cache.add_slots(slots, pool),
            slot_bytes=slot_bytes,
            device=self._device,
        )

    def _make_executor(self, encoder: Encoder, upper: UpperLayers, pool: SlotPool) -> UpperExecutor:
        wanted = self._settings.precision
        if wanted == "float32" or (wanted == "auto" and not pays_int8(upper.config, self._device)):
            return UpperExecutor(upper, pool)
        return UpperExecutor(upper, pool, "int8", sample=calibration_sample(encoder, upper.split))

    def _lock(self, key: object) -> threading.Lock:
        with self._guard:
            return self._locks[key]
