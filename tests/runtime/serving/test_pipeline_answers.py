"""The pipeline's answers equal the references, row by row, whatever else is in the batch."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support_encoders import FAMILIES

from hmi_api.internal.inference import InferRow, RowResult
from hmi_api.internal.runtimes import AdapterServing, DomainServing
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.cache.adapter_cache import AdapterId
from hmi_runtime.cache.tiers import Tier
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import resident_bytes
from hmi_runtime.serving import engine

SENTENCES = [
    "the chain slips on a hill",
    "my room key lost",
    "a wheel",
    "the rooms . my keys slipsing on the chain",
    "lost",
]


def serve(loader: AdapterLoader, adapter: AdapterServing, domain: DomainServing) -> None:
    loader.activate(loader.load(adapter, domain))


def infer(loader: AdapterLoader, rows: list[InferRow]) -> list[RowResult]:
    return loader.pipeline.submit(rows).result(timeout=60)


@pytest.fixture
def served(models, loader) -> dict[str, AdapterServing]:  # type: ignore[no-untyped-def]
    """Adapters of three tenants on three domains, two with bridges of one shape and one with none."""
    bike = models.domain("bikes/repair", seed=1)
    hotel = models.domain("hotels/desk", seed=2)
    plain = models.domain("plain/none", seed=3, bridge_heads=0, table=False)
    made = {
        "acme/topic": (bike, {"seed": 1, "labels": 3}),
        "acme/guard": (bike, {"seed": 2, "labels": 2}),
        "acme/names": (bike, {"seed": 3, "labels": 5, "task": TaskType.TOKEN_CLASSIFICATION}),
        "inn/mood": (hotel, {"seed": 4, "labels": 4, "bottleneck": True}),
        "inn/desk": (hotel, {"seed": 5, "labels": 8}),
        "solo/plain": (plain, {"seed": 6, "labels": 2}),
    }
    adapters = {}
    for key, (domain, options) in made.items():
        adapters[key] = models.adapter(key, domain, **options)
        serve(loader, adapters[key], domain)
    return adapters


def assert_right(models, adapter: AdapterServing, text: str, result: RowResult) -> None:  # type: ignore[no-untyped-def]
    assert result.error is None, result.error
    expected = models.probabilities(adapter, text)
    if adapter.task_type is TaskType.TOKEN_CLASSIFICATION:
        for token in result.tokens:
            assert text[token.start : token.end] == token.text
        best = expected.max(-1)
        firsts = [token.label for token in result.tokens]
        encoding = models.base.tokenizer.encode([text], 64)[0]
        places = [
            p for p, w in enumerate(encoding.word_ids) if w is not None and w not in encoding.word_ids[:p]
        ]
        assert firsts == [adapter.labels[best.indices[place]] for place in places]
        assert [token.score for token in result.tokens] == pytest.approx(
            [float(best.values[place]) for place in places], abs=2e-3
        )
    else:
        # Tables are float16; computed windows are float32.
        torch.testing.assert_close(torch.tensor(result.scores), expected, atol=2e-3, rtol=0)


def test_rows_that_only_complete_a_batch_have_no_answer(  # type: ignore[no-untyped-def]
    models, loader, served, monkeypatch
) -> None:
    monkeypatch.setattr(engine, "shape_size", lambda rows: rows + 2)
    rows = [InferRow(adapter=key, text=text) for text in SENTENCES for key in served]
    results = infer(loader, rows)
    assert len(results) == len(rows)
    for row, result in zip(rows, results, strict=True):
        assert_right(models, served[row.adapter], row.text, result)


@pytest.mark.parametrize("tiny_base", FAMILIES, indirect=True)
def test_a_mixed_batch_equals_the_reference_row_by_row(models, loader, served) -> None:  # type: ignore[no-untyped-def]
    rows = [InferRow(adapter=key, text=text) for text in SENTENCES for key in served]
    results = infer(loader, rows)
    for row, result in zip(rows, results, strict=True):
        assert_right(models, served[row.adapter], row.text or "", result)


def test_a_domain_larger_than_the_budget_for_tables_gives_the_same_answers(  # type: ignore[no-untyped-def]
    models, settings, metrics
) -> None:
    domain = models.domain("bikes/repair")
    (table,) = domain.version.tables
    budget = domain.version.layers.bytes + table.bytes // 2
    adapter = models.adapter("acme/topic", domain, pinned=True)
    with ThreadPoolExecutor(2) as threads:
        loader = AdapterLoader(
            settings.model_copy(update={"table_budget": budget}),
            models.store,
            threads,
            cache_events=metrics,
            pipeline_events=metrics,
            table_events=metrics,
        )
        serve(loader, adapter, domain)
        results = infer(loader, [InferRow(adapter="acme/topic", text=text) for text in SENTENCES])
        resident = {(one.kind, one.tier): one.bytes for one in resident_bytes(loader)}
        loader.pipeline.drain(5.0)
    for text, result in zip(SENTENCES, results, strict=True):
        assert_right(models, adapter, text, result)
    found = {tier: metrics.registry.get_sample_value("hmi_table_rows_total", {"tier": tier}) for tier in Tier}
    assert found[Tier.HOST] > 0 < found[Tier.DISK]
    assert found[Tier.HOST] + found[Tier.DISK] == metrics.sources()["bikes/repair@1"]["own_trigram"]
    assert metrics.registry.get_sample_value("hmi_table_read_bytes_total") > 0
    assert 0 < resident["table", "host"] <= budget < resident["table", "disk"]


def test_a_mixed_batch_equals_the_same_rows_one_by_one(loader, served) -> None:  # type: ignore[no-untyped-def]
    rows = [InferRow(adapter=key, text=text) for text in SENTENCES for key in served]
    together = infer(loader, rows)
    for row, result in zip(rows, together, strict=True):
        (alone,) = infer(loader, [row])
        assert alone.scores == pytest.approx(result.scores, abs=1e-5)
        assert [t.label for t in alone.tokens] == [t.label for t in result.tokens]
        assert alone.table_lookups == result.table_lookups == result.prompt_tokens


def test_fan_out_shares_a_text_within_a_domain(loader, served, metrics) -> None:  # type: ignore[no-untyped-def]
    rows = [InferRow(adapter=key, text=SENTENCES[0]) for key in ("acme/topic", "acme/guard", "acme/names")]
    results = infer(loader, rows)
    assert all(result.error is None for result in results)
    assert metrics.registry.get_sample_value("hmi_shared_representations_total") == 2
    assert metrics.sources()["bikes/repair@1"].total() == results[0].prompt_tokens
    assert results[0].table_hits == results[0].table_lookups


def test_given_words_keep_their_split_and_offsets(loader, served) -> None:  # type: ignore[no-untyped-def]
    (result,) = infer(loader, [InferRow(adapter="acme/names", words=["my", "keys", "lost"])])
    assert [(t.text, t.start, t.end) for t in result.tokens] == [
        ("my", 0, 2),
        ("keys", 3, 7),
        ("lost", 8, 12),
    ]


@pytest.mark.parametrize(
    ("row", "status", "reason"),
    [
        (InferRow(adapter="acme/topic", text="  "), 400, "EmptyText"),
        (InferRow(adapter="acme/topic"), 400, "TextMissing"),
        (InferRow(adapter="acme/topic", words=[]), 400, "EmptyText"),
        (InferRow(adapter="acme/topic", text="the " * 40), 400, "TextTooLong"),
        (InferRow(adapter="nobody/here", text="the"), 503, "NotLoaded"),
    ],
)
def test_a_bad_row_fails_alone(loader, served, row: InferRow, status: int, reason: str) -> None:  # type: ignore[no-untyped-def]
    good = InferRow(adapter="inn/mood", text="a wheel")
    before, bad, after = infer(loader, [good, row, good])
    assert before.error is None
    assert before.scores == after.scores
    assert bad.error is not None
    assert (bad.error.status, bad.error.reason) == (status, reason)


def test_more_adapters_than_slots_are_served_by_eviction(models, loader, metrics) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    adapters = [models.adapter(f"tenant-{n}/task", domain, seed=n) for n in range(20)]  # of 8 slots
    for adapter in adapters:
        serve(loader, adapter, domain)
    rows = [InferRow(adapter=adapter.key, text=SENTENCES[0]) for adapter in adapters * 2]
    for row, result in zip(rows, infer(loader, rows), strict=True):
        assert_right(models, next(a for a in adapters if a.key == row.adapter), row.text or "", result)
    evictions = metrics.registry.get_sample_value(
        "hmi_adapter_evictions_total", {"from": "device", "to": "host"}
    )
    assert evictions >= 12


def test_a_damaged_adapter_fails_alone_and_recovers(models, loader, served) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair", seed=1)
    adapter = models.adapter("acme/broken", domain, seed=9)
    serve(loader, adapter, domain)
    stored = models.folder / "store" / adapter.artifact.uri / "adapter.safetensors"
    whole = stored.read_bytes()
    loader.disk.delete(adapter.artifact.digest)
    stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    rows = [InferRow(adapter=key, text="a wheel") for key in ("acme/broken", "acme/topic")]
    broken, good = infer(loader, rows)
    assert good.error is None
    assert broken.error is not None
    assert (broken.error.status, broken.error.reason) == (500, "DigestMismatch")
    stored.write_bytes(whole)
    loader.cache.register(AdapterId.of(adapter), adapter.artifact)
    recovered, _ = infer(loader, rows)
    assert_right(models, adapter, "a wheel", recovered)


def test_another_tenants_adapter_of_the_same_name_does_not_answer(models, loader) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    adapter = models.adapter("acme/spam", domain).model_copy(update={"tenant_id": "tenant_1"})
    loader.activate(loader.load(adapter, domain))
    rows = [InferRow(adapter=adapter.key, text="a wheel")]
    results = {
        tenant_id: loader.pipeline.submit(rows, tenant_id=tenant_id).result(timeout=60)[0]
        for tenant_id in ("tenant_1", "tenant_2", None)
    }
    assert results["tenant_1"].error is None
    assert results[None].error is None
    assert results["tenant_2"].error is not None
    assert (results["tenant_2"].error.status, results["tenant_2"].error.reason) == (503, "NotLoaded")


def test_an_adapter_created_again_answers_with_its_new_weights(models, loader) -> None:  # type: ignore[no-untyped-def]
    domain = models.domain("bikes/repair")
    for seed in (1, 2):  # both have version 1
        adapter = models.adapter("acme/spam", domain, seed=seed)
        loader.activate(loader.load(adapter, domain))
        (result,) = infer(loader, [InferRow(adapter=adapter.key, text="a wheel")])
        expected = models.probabilities(adapter, "a wheel")
        torch.testing.assert_close(torch.tensor(result.scores), expected, atol=1e-4, rtol=1e-4)
