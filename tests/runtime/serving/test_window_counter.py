"""Window counts: exact while they fit, fair and never too high when they do not."""

from collections import Counter
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from window_batches import Texts, batch, reported, true_counts, windows_of

from hmi_api.internal.inference import InferRow
from hmi_runtime.models.windows import pack, trigrams
from hmi_runtime.serving.window_counts import WindowCounter
from hmi_runtime.tables.lookup import LookupSource

tokens = st.lists(st.integers(1, 5), min_size=1, max_size=8)
texts = st.lists(
    st.tuples(st.sampled_from(["t1", "t2", "t3"]), st.sampled_from(["a/a", "b/b"]), tokens),
    min_size=1,
    max_size=5,
)
quick = settings(deadline=None, max_examples=60)


@quick
@given(st.lists(texts, max_size=6))
def test_counts_are_exact_while_they_fit(batches: list[Texts]) -> None:
    counted: list[int] = []
    counter = WindowCounter(on_counted=counted.append)
    for one in batches:
        counter.add(batch(one))
    taken = counter.take()
    assert reported(taken) == true_counts([text for one in batches for text in one])
    lookups = sum(len(tokens) for one in batches for _, _, tokens in one)
    assert sum(domain.lookups for domain in taken) == sum(counted) == lookups
    assert counter.take() == []


@quick
@given(st.lists(texts, max_size=6), st.integers(1, 30), st.integers(1, 6), st.integers(1, 60))
def test_reports_are_bounded_and_lose_only_what_is_said_to_be_dropped(
    batches: list[Texts], most: int, most_of_tenant: int, room: int
) -> None:
    dropped: list[int] = []
    counter = WindowCounter(on_dropped=dropped.append, room=room)
    total: Counter[tuple[str, str, int]] = Counter()
    for one in [*batches, *([] for _ in range(80))]:
        if one:
            counter.add(batch(one))
        found = reported(taken := counter.take(most, most_of_tenant))
        assert len(found) <= most
        for domain in taken:
            assert all(tenant.windows <= most_of_tenant for tenant in domain.tenants)
        total += found
    expected = true_counts([text for one in batches for text in one])
    assert all(total[key] <= expected[key] for key in total)
    assert total.total() + sum(dropped) == expected.total()


def test_a_flood_of_one_tenant_displaces_nobody() -> None:
    counter = WindowCounter(room=60)
    flood: Texts = [("flood", "a/a", list(range(1, 41))) for _ in range(3)]
    counter.add(batch([("quiet", "a/a", [1, 2, 3]), *flood, ("quiet", "b/b", [4, 5])]))
    flood = [("flood", "a/a", [7, number, 9]) for number in range(1, 41)]
    counter.add(batch(flood))
    found = reported(counter.take(20))
    assert len(found) == 20
    assert {key for key in found if key[1] == "quiet"} == {
        *(("a/a", "quiet", key) for key in windows_of([1, 2, 3])),
        *(("b/b", "quiet", key) for key in windows_of([4, 5])),
    }
    assert min(found[key] for key in found if key[1] == "flood") >= 3


def test_more_tenants_than_room_are_reported_by_their_most_frequent_windows() -> None:
    counter = WindowCounter()
    counter.add(
        batch([(f"t{number}", "a/a", [number + 1, 1]) for number in range(9)] + [("t3", "a/a", [4, 1])])
    )
    found = reported(counter.take(most=2))
    assert len(found) == 2
    assert max(found.values()) == 2


def test_what_was_not_reported_is_reported_later() -> None:
    counter = WindowCounter()
    counter.add(batch([("t1", "a/a", [1, 2, 3, 4, 5])]))
    total = Counter[tuple[str, str, int]]()
    for _ in range(3):
        total += reported(counter.take(most=2))
    assert total == true_counts([("t1", "a/a", [1, 2, 3, 4, 5])])


def test_hits_are_windows_that_were_found_whole() -> None:
    counter = WindowCounter()
    for source in LookupSource:
        counter.add(batch([("t1", "a/a", [1, 2]), ("t1", "a/a", [3])], source))
    (domain,) = counter.take()
    assert (domain.lookups, domain.hits) == (8 * 3, 2 * 3)


def test_windows_without_a_tenant_are_not_reported_but_their_lookups_are() -> None:
    dropped: list[int] = []
    counter = WindowCounter(on_dropped=dropped.append)
    counter.add(batch([("", "a/a", [1, 2])]))
    (domain,) = counter.take()
    assert (domain.lookups, domain.tenants, dropped) == (2, [], [2])


def test_domains_beyond_what_a_report_may_have_are_counted_and_logged_once(caplog: Any) -> None:
    dropped: list[int] = []
    domains: list[int] = []
    counter = WindowCounter(on_dropped=dropped.append, on_domains_dropped=domains.append, most_domains=2)
    for _ in range(2):
        counter.add(batch([("t1", f"a/d{number}", [number, 7]) for number in range(1, 6)]))
        assert len(counter.take()) == 2
        assert counter.take() == []
    assert (sum(domains), sum(dropped)) == (2 * 3, 2 * 3 * 2)
    (logged,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "5 versions of Domains" in logged


def test_batches_are_merged_when_there_are_too_many(monkeypatch: Any) -> None:
    monkeypatch.setattr("hmi_runtime.serving.window_counts._NOTED_TOKENS", 4)
    counter = WindowCounter()
    for _ in range(5):
        counter.add(batch([("t1", "a/a", [1, 2, 3])]))
    assert reported(counter.take()) == true_counts([("t1", "a/a", [1, 2, 3])] * 5)


def test_a_text_counts_once_for_each_tenant_of_the_rows_that_share_it(
    models: Any, loader: Any, metrics: Any
) -> None:
    """A real pipeline: three adapters of two tenants, two Domains, and texts in several rows."""
    base = models.base
    repair, desk = models.domain("bikes/repair", seed=1), models.domain("hotels/desk", seed=2)
    for key, domain, tenant in (
        ("acme/one", repair, "tenant_1"),
        ("acme/two", repair, "tenant_1"),
        ("acme/other", desk, "tenant_1"),
        ("bolt/one", repair, "tenant_2"),
    ):
        adapter = models.adapter(key, domain).model_copy(update={"tenant_id": tenant})
        loader.activate(loader.load(adapter, domain))
    texts = ["the chain slips on a hill", "a wheel"]
    rows = [
        InferRow(adapter=key, text=text)
        for text in texts
        for key in ("acme/one", "acme/two", "acme/other", "bolt/one")
    ]
    results = loader.pipeline.submit(rows).result(60)
    assert [result.error for result in results] == [None] * len(rows)
    expected: Counter[tuple[str, str, int]] = Counter()
    for encoding in base.tokenizer.encode(texts, 64):
        ids = torch.tensor([encoding.ids])
        keys = pack(trigrams(ids, torch.ones_like(ids, dtype=torch.bool))[0], base.config.vocab_size)
        for domain, tenant in (
            ("bikes/repair", "tenant_1"),
            ("bikes/repair", "tenant_2"),
            ("hotels/desk", "tenant_1"),
        ):
            expected.update((domain, tenant, key) for key in keys.tolist())
    taken = {one.domain: one for one in metrics.windows.take()}
    assert reported(list(taken.values())) == expected
    tokens = [len(encoding.ids) for encoding in base.tokenizer.encode(texts, 64)]
    assert taken["hotels/desk"].lookups == sum(tokens)
    assert taken["bikes/repair"].lookups == 2 * sum(tokens)
    assert taken["hotels/desk"].hits == tokens[0]  # the table has the first text's windows
    assert taken["hotels/desk"].layers_digest == desk.version.layers.digest
