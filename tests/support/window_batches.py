"""Batches of the fewest parts that a counter of windows reads, and what it should count in them."""

from collections import Counter
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hmi_api.internal.window_counts import DomainWindows
from hmi_runtime.models.windows import pack, trigrams
from hmi_runtime.tables.lookup import LookupSource

VOCABULARY = 50
Texts = list[tuple[str, str, list[int]]]
"""Tenant, Domain and tokens."""


def batch(texts: Texts, source: LookupSource = LookupSource.COMPUTED) -> Any:
    """Return what the counter reads of a batch in which every text is one row."""
    names = sorted({domain for _, domain, _ in texts})
    order = sorted(range(len(texts)), key=lambda row: texts[row][1])  # texts of a Domain follow one another
    tokens = [texts[row][2] for row in order]
    ids = np.array(list(chain.from_iterable(tokens)), dtype=np.int64)
    layers = SimpleNamespace(config=SimpleNamespace(encoder=SimpleNamespace(vocab_size=VOCABULARY)))
    return SimpleNamespace(
        rows=[SimpleNamespace(adapter=SimpleNamespace(tenant_id=tenant)) for tenant, _, _ in texts],
        representation_of=[order.index(row) for row in range(len(texts))],
        representations=SimpleNamespace(
            ids=ids,
            lengths=[len(some) for some in tokens],
            sources=np.full(len(ids), source, dtype=np.int8),
            texts=[sum(domain == name for _, domain, _ in texts) for name in names],
            domains=[
                SimpleNamespace(key=name, version=1, layers_digest="sha256:l", layers=layers)
                for name in names
            ],
        ),
    )


def windows_of(tokens: list[int]) -> list[int]:
    ids = torch.tensor([tokens])
    keys: list[int] = pack(trigrams(ids, torch.ones_like(ids, dtype=torch.bool))[0], VOCABULARY).tolist()
    return keys


def reported(domains: list[DomainWindows]) -> Counter[tuple[str, str, int]]:
    """Return counts by Domain, tenant and window."""
    found: Counter[tuple[str, str, int]] = Counter()
    for domain in domains:
        for tenant in domain.tenants:
            keys, counts = (np.frombuffer(some, "<i8").tolist() for some in (tenant.keys, tenant.counts))
            assert len(set(keys)) == len(keys)
            for key, count in zip(keys, counts, strict=True):
                found[domain.domain, tenant.tenant_id, key] += count
    return found


def true_counts(texts: Texts) -> Counter[tuple[str, str, int]]:
    return Counter((domain, tenant, key) for tenant, domain, tokens in texts for key in windows_of(tokens))
