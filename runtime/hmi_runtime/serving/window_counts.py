"""Counts the windows that traffic looks up, by Domain version and tenant, in bounded memory.

The pipeline's threads only note their batches. Many batches at once are then merged into sorted arrays by
the thread that reports. What does not fit is dropped fairly: each tenant of each Domain may keep the same
number of windows, its most frequent ones, so that nobody's traffic displaces another's.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmi_api.internal.window_counts import MAX_REPORTED_DOMAINS, DomainWindows, TenantWindows
from hmi_runtime.models.packing import window_keys
from hmi_runtime.serving.staging import StagedBatch
from hmi_runtime.tables.lookup import LookupSource

log = logging.getLogger(__name__)

Int64s = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NOTED_TOKENS = 1 << 20
"""Tokens of noted batches, 10 bytes each, before the pipeline's own thread has to merge them."""


class VersionName(NamedTuple):
    """A version of a Domain."""

    domain: str
    version: int
    layers_digest: str


class Asker(NamedTuple):
    """A tenant in a version of a Domain; ``tenant_id`` is empty where the control plane does not send it."""

    version: VersionName
    tenant_id: str


class _Noted(NamedTuple):
    """What is counted of a batch of B rows with U texts of N tokens; nobody changes it later."""

    ids: Int64s  # (N,)
    lengths: Sequence[int]  # (U,)
    sources: NDArray[np.int8]  # (N,)
    text_of: Sequence[int]  # (B,)
    texts: Sequence[int]  # how many each of ``versions`` has, one after the other
    versions: Sequence[VersionName]
    tenants: Sequence[str]  # (B,)
    vocab_size: int


@dataclass
class _Counts:
    """Windows by asker: all arrays (N,) int64, sorted by ``asker_of`` and ``keys``."""

    askers: dict[Asker, int] = field(default_factory=dict)
    asker_of: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    keys: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    counts: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    lookups: dict[VersionName, Int64s] = field(default_factory=dict)
    """Windows looked up and whole-window hits (2,), windows included that were dropped."""


class WindowCounter:
    """Counts windows of staged batches until they are taken for a report. Thread-safe.

    Call ``merge`` every few seconds, so that ``add`` need not. At most ``room`` windows are kept between two
    reports, 24 bytes each. ``on_counted`` receives how many windows a merge has counted, and ``on_dropped``
    how many of these will not be reported because they did not fit. ``on_domains_dropped`` receives how many
    versions of Domains a report left out, because it may have ``most_domains``; their windows are dropped.
    """

    def __init__(
        self,
        *,
        on_counted: Callable[[int], object] = lambda _: None,
        on_dropped: Callable[[int], object] = lambda _: None,
        on_domains_dropped: Callable[[int], object] = lambda _: None,
        room: int = 1 << 18,
        most_domains: int = MAX_REPORTED_DOMAINS,
    ) -> None:
        self._on_counted = on_counted
        self._on_dropped = on_dropped
        self._on_domains_dropped = on_domains_dropped
        self._most_domains = most_domains
        self._told = False
        self._room = room
        self._noted: list[_Noted] = []
        self._noted_tokens = 0
        self._noted_lock = threading.Lock()
        self._counts = _Counts()
        self._counts_lock = threading.Lock()

    def add(self, batch: StagedBatch) -> None:
        """Count the windows of a batch in the next ``merge``.

        A text counts once for each tenant that asked for it, however many of the tenant's rows share it.
        """
        shared = batch.representations
        if shared is None:
            return
        noted = _Noted(
            ids=shared.ids,
            lengths=shared.lengths,
            sources=shared.sources,
            text_of=batch.representation_of,
            texts=shared.texts,
            versions=[VersionName(one.key, one.version, one.layers_digest) for one in shared.domains],
            tenants=[row.adapter.tenant_id for row in batch.rows],
            vocab_size=shared.domains[0].layers.config.encoder.vocab_size,
        )
        with self._noted_lock:
            self._noted.append(noted)
            self._noted_tokens += len(shared.ids)
            is_full = self._noted_tokens >= _NOTED_TOKENS
        if is_full:
            self.merge()

    def take(self, most: int = 1 << 15, most_of_tenant: int = 1 << 13) -> list[DomainWindows]:
        """Return the most frequent windows, at most ``most``, and count them no more.

        A tenant of a Domain has at most ``most_of_tenant``. The others stay counted, so that a window that is
        asked for seldom but again and again is reported in the end; half the room is kept for new ones.
        """
        self.merge()
        with self._counts_lock:
            counts = self._counts
            taken = _fair_share(counts, most, most_of_tenant)
            report = _report(counts, taken)
            self._keep(~taken)
            self._keep(_fair_share(counts, self._room // 2), dropping=True)
            used = np.unique(counts.asker_of)
            names = list(counts.askers)
            counts.askers = {names[number]: place for place, number in enumerate(used.tolist())}
            counts.asker_of = np.searchsorted(used, counts.asker_of).astype(np.int64)
            counts.lookups = {}
        self._count_dropped(report[self._most_domains :])
        return report[: self._most_domains]

    def _count_dropped(self, domains: Sequence[DomainWindows]) -> None:
        """Count versions of Domains that a report has no room for, and say so once."""
        if not domains:
            return
        self._on_domains_dropped(len(domains))
        self._on_dropped(sum(_total(tenant) for one in domains for tenant in one.tenants))
        if not self._told:
            self._told = True
            log.warning(
                "%d versions of Domains were looked up since the last report, which has room for %d: their "
                "lookups are not counted; hmi_window_domains_dropped_total counts on",
                len(domains) + self._most_domains,
                self._most_domains,
            )

    def merge(self) -> None:
        """Count the windows of the batches that were added since the last call."""
        with self._noted_lock:
            noted, self._noted = self._noted, []
            self._noted_tokens = 0
        if not noted:
            return
        looked_up = _windows_of(noted)
        self._on_counted(int(looked_up.counts.sum()))
        with self._counts_lock:
            counts = self._counts
            _add_lookups(counts, looked_up)
            numbers = [counts.askers.setdefault(one, len(counts.askers)) for one in looked_up.askers]
            fresh = np.array(numbers, np.int64)[looked_up.asker_of]
            counts.asker_of, counts.keys, counts.counts = _summed(
                np.concatenate([counts.asker_of, fresh]),
                np.concatenate([counts.keys, looked_up.keys]),
                np.concatenate([counts.counts, looked_up.counts]),
            )
            self._drop_unattributed()
            if len(counts.keys) > self._room:
                self._keep(_fair_share(counts, self._room), dropping=True)

    def _drop_unattributed(self) -> None:
        """Drop windows of tenants that are not known: nobody could tell the owner's from others'."""
        counts = self._counts
        unknown = [number for asker, number in counts.askers.items() if not asker.tenant_id]
        if unknown:
            self._keep(~np.isin(counts.asker_of, unknown), dropping=True)

    def _keep(self, kept: Mask, *, dropping: bool = False) -> None:
        counts = self._counts
        if kept.all():
            return
        if dropping:
            self._on_dropped(int(counts.counts[~kept].sum()))
        counts.asker_of, counts.keys = counts.asker_of[kept], counts.keys[kept]
        counts.counts = counts.counts[kept]


@dataclass(frozen=True)
class _LookedUp:
    """The windows (N,) of some batches by asker, and what each asker looked up."""

    askers: Sequence[Asker]  # A of them
    asker_of: Int64s  # (N,)
    keys: Int64s  # (N,)
    counts: Int64s  # (N,)
    lookups: Int64s  # (A, 2) windows looked up, and whole-window hits


def _windows_of(noted: Sequence[_Noted]) -> _LookedUp:
    """Return the windows of the noted batches, all of them in one pass.

    P is the number of different (text, tenant) pairs.
    """
    texts, askers, asker_of_pair = _pairs_of(noted)  # (P,), A, (P,)
    lengths = np.concatenate([one.lengths for one in noted])  # of each text
    ids = np.concatenate([one.ids for one in noted])  # all tokens, text after text
    sources = np.concatenate([one.sources for one in noted])
    # The whole window was in a table.
    hits = (sources == LookupSource.OWN_TRIGRAM) | (sources == LookupSource.ANCESTOR_TRIGRAM)
    ends = np.cumsum(lengths)
    bases = np.repeat([one.vocab_size + 1 for one in noted], [len(one.ids) for one in noted])
    keys = window_keys(ids, lengths, bases)
    hits_before = np.concatenate([[0], np.cumsum(hits)])
    of_text = np.stack([lengths, hits_before[ends] - hits_before[ends - lengths]], axis=1)  # lookups, hits
    lookups = np.zeros((len(askers), 2), np.int64)
    np.add.at(lookups, asker_of_pair, of_text[texts])
    token = _ranges((ends - lengths)[texts], lengths[texts])
    asker_of, keys, counts = _summed(
        np.repeat(asker_of_pair, lengths[texts]), keys[token], np.ones(len(token), np.int64)
    )
    return _LookedUp(askers, asker_of, keys, counts, lookups)


def _pairs_of(noted: Sequence[_Noted]) -> tuple[Int64s, list[Asker], Int64s]:
    """Return the text and the asker (P,) of the different (text, tenant) pairs, and the askers.

    Texts are numbered through all batches.
    """
    versions: dict[VersionName, int] = {}
    tenants: dict[str, int] = {}
    version_of, text_of, tenant_of, first = [], [], [], 0
    for one in noted:
        local = np.array([versions.setdefault(name, len(versions)) for name in one.versions], np.int64)
        version_of.append(np.repeat(local, one.texts))
        text_of.append(np.asarray(one.text_of) + first)
        tenant_of.append([tenants.setdefault(tenant, len(tenants)) for tenant in one.tenants])
        first += len(one.lengths)
    pairs = np.unique(np.concatenate(text_of) * len(tenants) + np.concatenate(tenant_of))  # (P,)
    texts, tenant = np.divmod(pairs, len(tenants))
    combined = np.concatenate(version_of)[texts] * len(tenants) + tenant
    found, asker_of = np.unique(combined, return_inverse=True)
    names, ids = list(versions), list(tenants)
    askers = [Asker(names[number // len(ids)], ids[number % len(ids)]) for number in found.tolist()]
    return texts, askers, asker_of.astype(np.int64)


def _ranges(starts: Int64s, lengths: Int64s) -> Int64s:
    """Return starts[0], starts[0] + 1, ... up to lengths[0] numbers, then those of starts[1], and so on."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _summed(asker_of: Int64s, keys: Int64s, counts: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Return the different (asker, key) pairs in this order, and the sums of their counts. All are (N,)."""
    if not len(keys):
        return asker_of, keys, counts
    span = int(keys.max()) + 1
    if (int(asker_of.max()) + 1) * span < 1 << 63:  # one sort of 64-bit numbers is many times faster than two
        order = np.argsort(asker_of * span + keys)
    else:
        order = np.lexsort((keys, asker_of))
    asker_of, keys = asker_of[order], keys[order]
    starts = np.flatnonzero((np.diff(asker_of, prepend=-1) != 0) | (np.diff(keys, prepend=-1) != 0))
    return asker_of[starts], keys[starts], np.add.reduceat(counts[order], starts)


def _add_lookups(counts: _Counts, looked_up: _LookedUp) -> None:
    for asker, added in zip(looked_up.askers, looked_up.lookups, strict=True):
        before = counts.lookups.get(asker.version)
        counts.lookups[asker.version] = added if before is None else before + added


def _fair_share(counts: _Counts, room: int, each: int | None = None) -> Mask:
    """Return which windows (N,) to keep: the same number for every asker, the most frequent, ``room`` in all.

    Who has fewer keeps all, and leaves the rest to the others. ``each``: the most for one asker.
    """
    order = np.lexsort((-counts.counts, counts.asker_of))
    asker_of = counts.asker_of[order]
    starts = np.flatnonzero(np.diff(asker_of, prepend=-1))
    sizes = np.diff(starts, append=len(order))
    ranks = np.arange(len(order)) - np.repeat(starts, sizes)
    of_rank = np.cumsum(np.bincount(ranks))  # (R,) windows of ranks up to this one
    limit = int(np.searchsorted(of_rank, room, side="right"))
    chosen = ranks < limit
    if limit < len(of_rank):  # the next rank does not fit as a whole
        left = room - (int(of_rank[limit - 1]) if limit else 0)
        next_rank = np.flatnonzero(ranks == limit)
        by_count = np.argsort(-counts.counts[order[next_rank]], kind="stable")
        chosen[next_rank[by_count[:left]]] = True
    if each is not None:
        chosen &= ranks < each
    kept = np.zeros(len(order), np.bool_)
    kept[order] = chosen
    return kept


def _report(counts: _Counts, taken: Mask) -> list[DomainWindows]:
    asker_of, keys, numbers = counts.asker_of[taken], counts.keys[taken], counts.counts[taken]
    bounds = np.searchsorted(asker_of, np.arange(len(counts.askers) + 1))
    of_version: dict[VersionName, list[TenantWindows]] = {version: [] for version in counts.lookups}
    for (asker, _), start, end in zip(counts.askers.items(), bounds[:-1], bounds[1:], strict=True):
        if end > start:
            windows = TenantWindows(
                tenant_id=asker.tenant_id,
                keys=keys[start:end].astype("<i8").tobytes(),
                counts=numbers[start:end].astype("<i8").tobytes(),
            )
            of_version.setdefault(asker.version, []).append(windows)
    none = np.zeros(2, np.int64)
    found = []
    for version, tenants in of_version.items():
        lookups, hits = counts.lookups.get(version, none).tolist()
        found.append(DomainWindows(**version._asdict(), lookups=lookups, hits=hits, tenants=tenants))
    return found


def _total(windows: TenantWindows) -> int:
    return int(np.frombuffer(windows.counts, "<i8").sum())
