"""Batches of the fewest parts that a counter of windows reads, and what it should count in them."""

from collections import Counter
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
    longest = max(len(tokens) for _, _, tokens in texts)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, (_, _, tokens) in enumerate(texts):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    names = sorted({domain for _, domain, _ in texts})
    layers = SimpleNamespace(config=SimpleNamespace(encoder=SimpleNamespace(vocab_size=VOCABULARY)))
    return SimpleNamespace(
        rows=[SimpleNamespace(adapter=SimpleNamespace(tenant_id=tenant)) for tenant, _, _ in texts],
        representation_of=torch.arange(len(texts)),
        representations=SimpleNamespace(
            ids=ids,
            mask=mask,
            sources=torch.full(mask.shape, int(source)).masked_fill_(~mask, LookupSource.PADDING),
            domain_of=torch.tensor([names.index(domain) for _, domain, _ in texts]),
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
