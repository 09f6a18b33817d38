"""Loads engines, Domain versions and adapters; each is loaded once and shared by all that need it."""

import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch

from hmi_api.artifacts import ArtifactRef
from hmi_api.errors import Damaged, NotReady
from hmi_api.internal.catalog import DomainVersionView
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_runtime.adapters.checks import check_adapter
from hmi_runtime.adapters.executor import UpperExecutor
from hmi_runtime.adapters.native.windows import pack_windows
from hmi_runtime.adapters.quantization import calibration_sample
from hmi_runtime.adapters.slot_pool import SlotPool
from hmi_runtime.adapters.weights import AdapterWeights, pin_memory
from hmi_runtime.artifacts.store import ArtifactStore
from hmi_runtime.cache.adapter_cache import AdapterCache, AdapterId
from hmi_runtime.cache.disk import DiskTier
from hmi_runtime.cache.tiers import CacheEvents
from hmi_runtime.models.domain_layers import DomainLayers
from hmi_runtime.models.encoder import Encoder, UpperLayers
from hmi_runtime.models.source import BaseModel, load_base
from hmi_runtime.precision.chooser import FrozenLayers, KernelChooser
from hmi_runtime.precision.processor import processor_fingerprint
from hmi_runtime.precision.records import ChoiceFile, PoolRecords
from hmi_runtime.precision.sample import domain_sample
from hmi_runtime.server.settings import RuntimeSettings
from hmi_runtime.serving.engine import Engine
from hmi_runtime.serving.loaded import EngineKey, LoadedAdapter, LoadedDomain
from hmi_runtime.serving.pipeline import Pipeline
from hmi_runtime.serving.worker import PipelineEvents
from hmi_runtime.tables.lookup import TreeLookup
from hmi_runtime.tables.memory import TableMemory
from hmi_runtime.tables.tiers import TableEvents, TieredTable

log = logging.getLogger(__name__)
M = TypeVar("M", DomainLayers, TieredTable)


class AdapterLoader:
    """Loads adapters and connects them to the cache and the pipeline.

    ``load`` does the slow part; ``activate`` and ``unload`` read nothing. All may be called from any thread,
    ``activate`` and ``unload`` not at the same time for the same adapter.
    """

    def __init__(
        self,
        settings: RuntimeSettings,
        store: ArtifactStore,
        loaders: Executor,
        *,
        cache_events: CacheEvents,
        pipeline_events: PipelineEvents,
        table_events: TableEvents | None = None,
        records: PoolRecords | None = None,
    ) -> None:
        """``records`` has the pool's choices of precision; None: there is no control plane."""
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
            cores=settings.cores,
            events=pipeline_events,
        )
        self.chooser = KernelChooser(
            device=self._device,
            requested=settings.precision,
            pool=settings.pool,
            processor=processor_fingerprint(self._device),
            records=records,
            file=ChoiceFile(settings.cache_dir / "precision.json"),
        )
        self._artifact_users: Counter[str] = Counter()
        # Weak: layers and tables are freed once no active adapter and no batch uses their Domain.
        self._domains: weakref.WeakValueDictionary[tuple[object, ...], LoadedDomain] = (
            weakref.WeakValueDictionary()
        )
        self._layers: weakref.WeakValueDictionary[str, DomainLayers] = weakref.WeakValueDictionary()
        self._tables: weakref.WeakValueDictionary[str, TieredTable] = weakref.WeakValueDictionary()
        self.table_memory = TableMemory(
            settings.table_budget,
            device=self._device,
            device_budget=settings.device_table_budget,
            events=table_events,
        )
        self._mapped_bytes: Counter[str] = Counter()
        self._pinned_tables: dict[AdapterId, tuple[TieredTable, ...]] = {}
        self._bases: dict[str, tuple[BaseModel, Encoder]] = {}
        """By digest. Engines are kept, and so are their base models."""
        # Re-entrant: a finalizer may run on a thread that has it. Never acquire the cache's lock under it.
        self._guard = threading.RLock()
        # Weak: a lock is there while a thread has it or waits for it.
        self._locks: weakref.WeakValueDictionary[object, threading.Lock] = weakref.WeakValueDictionary()

    # --- adapters -----------------------------------------------------------------------------------

    def load(
        self, adapter: AdapterServing, domain: DomainServing, serving: LoadedAdapter | None = None
    ) -> LoadedAdapter:
        """Fetch an adapter's artifact, check it, and load its Domain.

        If ``serving`` is the same version on the same layers, only the Domain is loaded: a refreshed table
        changes nothing of its adapters. Raise ``HmiError`` with the reason why the adapter cannot be served.
        """
        base, encoder = self._base(domain.version)
        loaded_domain = self._domain(domain, encoder)
        engine = self._engine(domain.version, base, encoder, loaded_domain)
        if serving is not None and serving.is_valid_on(adapter, loaded_domain):
            return replace(serving, domain=loaded_domain, pinned=adapter.pinned)
        weights = self._read(adapter.artifact)
        check_adapter(
            weights,
            engine.base.config,
            engine.key.split,
            base_digest=engine.key.base_digest,
            layers_digest=loaded_domain.layers_digest,
        )
        # A slot is written at the first request, but an adapter that does not fit must be refused before.
        engine.executor.pool.check_fits(weights)
        if weights.labels != tuple(adapter.labels):
            raise Damaged(
                "AdapterLabels",
                f"The artifact of {adapter.key} names labels {list(weights.labels)}, the catalog "
                f"{adapter.labels}; train it again.",
            )
        return LoadedAdapter(
            id=AdapterId.of(adapter),
            engine=engine.key,
            domain=loaded_domain,
            task=adapter.task_type,
            labels=weights.labels,
            artifact=adapter.artifact,
            tag_scheme=weights.entity_scheme,
            tenant_id=adapter.tenant_id,
            pinned=adapter.pinned,
        )

    def activate(self, adapter: LoadedAdapter) -> None:
        """Answer new rows for the adapter's key with this version."""
        if adapter.id not in self.cache:
            with self._guard:
                self._artifact_users[adapter.artifact.digest] += 1
        self._pin_tables(adapter)
        self.cache.register(adapter.id, adapter.artifact, pinned=adapter.pinned)
        self.pipeline.activate(adapter)
        if adapter.pinned:
            self.cache.acquire(adapter.id, lambda error: None if error else self.cache.release(adapter.id))

    def unload(self, adapter: LoadedAdapter) -> None:
        """Drop a version's tensors and its local copy once no batch uses them."""
        if adapter.id not in self.cache:
            return
        digest = adapter.artifact.digest
        with self._guard:
            self._artifact_users[digest] -= 1
            last = self._artifact_users[digest] <= 0
            if last:
                del self._artifact_users[digest]
        self.cache.unregister(adapter.id)
        with self._guard:
            unpinned = self._pinned_tables.pop(adapter.id, ())
        self.table_memory.pin(unpinned, -1)
        if last:
            self.disk.delete(digest)

    def _pin_tables(self, adapter: LoadedAdapter) -> None:
        """Let the tables of a pinned adapter's Domain come first in the tables' memory."""
        pinned = adapter.domain.tables if adapter.pinned else ()
        with self._guard:
            before = self._pinned_tables.pop(adapter.id, ())
            if pinned:
                self._pinned_tables[adapter.id] = pinned
        self.table_memory.pin(pinned, 1)
        self.table_memory.pin(before, -1)

    @property
    def loaded_versions(self) -> int:
        """Adapter versions that are loaded."""
        with self._guard:
            return self._artifact_users.total()

    def _read_adapter(self, _: AdapterId, artifact: ArtifactRef) -> AdapterWeights:
        """Read an adapter for the host tier; ``load`` has checked it."""
        weights = self._read(artifact)
        return pin_memory(weights) if self._device.type == "cuda" else weights

    def _read(self, artifact: ArtifactRef) -> AdapterWeights:
        path = self.disk.acquire(artifact)
        try:
            return AdapterWeights.load(path)
        finally:
            self.disk.release(artifact.digest)

    # --- domains ------------------------------------------------------------------------------------

    def _domain(self, serving: DomainServing, encoder: Encoder) -> LoadedDomain:
        view = serving.version
        # A Domain that is deleted and created again starts at version 1 again, with other layers and tables.
        artifacts = [ref.digest for ref in (view.layers, *view.tables)]
        key = (serving.key, view.version, view.on_miss, *artifacts)
        with self._lock(key):
            domain = self._domains.get(key)
            if domain is None:
                layers = self._share(
                    self._layers,
                    view.layers,
                    lambda path: self._load_layers(path, view.layers, encoder),
                )
                tables = [self._share(self._tables, ref, self.table_memory.open) for ref in view.tables]
                digest = view.layers.digest
                lookup = TreeLookup(
                    tables, layers, layers_digest=digest, on_miss=view.on_miss, recent_bytes=0
                )
                self.table_memory.share_with(lookup.recent)
                domain = LoadedDomain(serving.key, view.version, lookup, tuple(tables))
                self._domains[key] = domain
                log.info("domain %s@%d loaded, %d tables", serving.key, view.version, len(tables))
            return domain

    def _load_layers(self, path: Path, ref: ArtifactRef, encoder: Encoder) -> DomainLayers:
        self.table_memory.reserve(ref.digest, ref.bytes)
        try:
            layers = DomainLayers.load(path, encoder).to(self._device)
            pack_windows(layers)
        except BaseException:
            self.table_memory.release(ref.digest, ref.bytes)
            raise
        weakref.finalize(layers, self.table_memory.release, ref.digest, ref.bytes)
        return layers

    def _share(
        self, loaded: "weakref.WeakValueDictionary[str, M]", ref: ArtifactRef, load: Callable[[Path], M]
    ) -> M:
        """Return an artifact's object from ``loaded``, where the first caller puts it.

        Its files stay on the local disk while the object lives.
        """
        with self._lock(ref.digest):
            found = loaded.get(ref.digest)
            if found is None:
                path = self.disk.acquire(ref)
                try:
                    found = load(path)
                except BaseException:
                    self.disk.release(ref.digest)
                    raise
                with self._guard:
                    self._mapped_bytes[ref.digest] += ref.bytes
                loaded[ref.digest] = found
                weakref.finalize(found, self._unmap, ref)
            return found

    def _unmap(self, ref: ArtifactRef) -> None:
        with self._guard:
            self._mapped_bytes[ref.digest] -= ref.bytes
            if self._mapped_bytes[ref.digest] <= 0:
                del self._mapped_bytes[ref.digest]
        self.disk.release(ref.digest)

    @property
    def mapped_bytes(self) -> int:
        """Bytes on the local disk of the loaded layers and tables."""
        with self._guard:
            return self._mapped_bytes.total()

    # --- engines ------------------------------------------------------------------------------------

    def _base(self, version: DomainVersionView) -> tuple[BaseModel, Encoder]:
        """Return a base model; engines of any split share its encoder."""
        with self._lock(version.base_digest):
            found = self._bases.get(version.base_digest)
            if found is None:
                base = load_base(version.base.uri, version.base.revision, expected_digest=version.base_digest)
                found = self._bases[version.base_digest] = base, base.encoder().to(self._device)
            return found

    def _engine(
        self, version: DomainVersionView, base: BaseModel, encoder: Encoder, domain: LoadedDomain
    ) -> Engine:
        key = EngineKey(version.base_digest, version.split)
        with self._lock(key):
            engine = self.pipeline.engine(key)
            if engine is None:
                engine = self._make_engine(key, base, encoder, domain)
                self.pipeline.add_engine(engine)
            return engine

    def _make_engine(self, key: EngineKey, base: BaseModel, encoder: Encoder, domain: LoadedDomain) -> Engine:
        """Return an engine; its precision is measured on the windows of ``domain``."""
        upper = UpperLayers(encoder, key.split)
        calibration = cache(partial(calibration_sample, encoder, key.split))
        kernel, precision = self.chooser.choose(
            FrozenLayers(
                base_uri=base.uri,
                base_digest=key.base_digest,
                encoder=encoder,
                upper=upper,
                calibration=calibration,
                sample=partial(domain_sample, domain),
            )
        )
        limits = replace(self._settings.slot_limits, dtype=kernel.slot_dtype)
        slot_bytes = SlotPool.slot_bytes(base.config, key.split, limits)
        slots = min(self._settings.device_slots, self._settings.device_budget // slot_bytes)
        if slots < 1:
            raise NotReady(
                "DeviceBudgetFull",
                "Not one adapter slot fits in HMI_DEVICE_BUDGET; raise it, or lower HMI_MAX_RANK.",
            )
        pool = SlotPool(upper, slots, limits, self._device)
        sample = calibration() if kernel.precision == "int8" else None
        return Engine(
            key=key,
            base=base,
            encoder=encoder,
            executor=UpperExecutor(upper, pool, kernel, sample=sample),
            precision=precision,
            slots=self.cache.add_slots(slots, pool),
            slot_bytes=slot_bytes,
            device=self._device,
        )

    def _lock(self, key: object) -> threading.Lock:
        with self._guard:
            lock = self._locks.get(key)
            if lock is None:
                lock = self._locks[key] = threading.Lock()
            return lock
