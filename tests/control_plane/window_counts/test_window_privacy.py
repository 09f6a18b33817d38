"""A run learns nothing of other tenants' texts but windows that several of them have."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from hmi_control_plane.app import create_app
from hmi_control_plane.settings import Part
from hmi_control_plane.window_counts.arrays import KeyCounts
from hmi_control_plane.window_counts.privacy import Place, split_by_place

windows = st.dictionaries(st.integers(0, 15), st.integers(1, 100), max_size=10)


def key_counts(counts: dict[int, int]) -> KeyCounts:
    keys = sorted(counts)
    return KeyCounts(np.array(keys, np.int64), np.array([counts[key] for key in keys], np.int64))


def readable(own: dict[int, int], others: list[dict[int, int]], least: int) -> dict[int, int]:
    """Return what may be read of a Domain without children."""
    found, theirs = split_by_place([place(own, others)], least)
    assert len(theirs) == 0
    return dict(zip(found.keys.tolist(), found.counts.tolist(), strict=True))


def place(own: dict[int, int], others: list[dict[int, int]], takes_in_from: int | None = None) -> Place:
    named = {str(number): key_counts(counts) for number, counts in enumerate(others)}
    return Place(key_counts(own), named, takes_in_from)


def reference(own: dict[int, int], others: list[dict[int, int]], least: int) -> dict[int, int]:
    """Return the admitted windows, window by window."""
    admitted = Counter(own)
    for window in {key for counts in others for key in counts}:
        askers = [counts[window] for counts in others if window in counts]
        if len(askers) >= least:
            admitted[window] += sum(askers)
    return dict(admitted)


@settings(deadline=None, max_examples=200)
@given(own=windows, others=st.lists(windows, max_size=7), least=st.integers(1, 5))
def test_nothing_that_fewer_others_asked_for_is_admitted(
    own: dict[int, int], others: list[dict[int, int]], least: int
) -> None:
    admitted = readable(own, others, least)
    for window, counted in admitted.items():
        askers = sum(window in counts for counts in others)
        if askers < least:  # then only the owner's own traffic is in the answer
            assert counted == own[window]
    assert admitted == reference(own, others, least)


@settings(deadline=None, max_examples=100)
@given(own=windows, others=st.lists(windows, max_size=6), least=st.integers(2, 4), text=windows)
def test_a_tenants_text_changes_nothing_where_too_few_others_share_it(
    own: dict[int, int], others: list[dict[int, int]], least: int, text: dict[int, int]
) -> None:
    """What one more tenant asked for is seen only in windows that enough tenants asked for."""
    before, after = readable(own, others, least), readable(own, [*others, text], least)
    for window in before.keys() | after.keys():
        if before.get(window) != after.get(window):
            assert sum(window in counts for counts in [*others, text]) >= least


def test_the_owners_traffic_counts_in_full_and_that_of_others_from_three_tenants_on(traffic: Any) -> None:
    traffic.sent({"acme": {1: 5, 2: 1}, "bolt": {1: 7, 3: 9}, "cog": {3: 1, 4: 1}, "dial": {3: 2, 4: 2}})
    run = traffic.run()
    assert traffic.windows(run) == {3: 12, 1: 5, 2: 1}
    traffic.sent({"elm": {4: 4, 1: 1}, "cog": {1: 1}})
    assert traffic.windows(run) == {1: 14, 3: 12, 4: 7, 2: 1}


def test_reports_of_several_runtimes_and_days_are_still_one_tenant(traffic: Any) -> None:
    for incarnation in ("one", "two", "three"):
        traffic.sent({"bolt": {8: 10}, "cog": {8: 10}}, incarnation=incarnation)
        traffic.merge()
    assert traffic.windows(traffic.run()) == {}


def test_a_tenant_has_one_voice_however_many_keys_it_has(traffic: Any) -> None:
    """Runtimes report by tenant; keys do not appear in reports at all."""
    for name in ("bolt", "cog"):
        traffic.tenant(name)
        for number in range(3):
            traffic.cluster.admin("POST", f"/tenants/{name}/keys", {"name": f"key {number}"})
        traffic.sent({name: {8: 1}})
    assert traffic.windows(traffic.run()) == {}


def test_the_answer_does_not_say_who_asked(traffic: Any, at_least_three: Any) -> None:
    traffic.sent({**at_least_three(8), "acme": {9: 1}})
    answer = traffic.cluster.internal("GET", f"/runs/{traffic.run()}/window-counts")
    assert "other" not in str(answer)
    assert "tenant_" not in str(answer)


def test_the_windows_of_a_deleted_tenant_are_erased_and_it_is_no_asker_any_more(
    traffic: Any, at_least_three: Any
) -> None:
    traffic.sent(at_least_three(8))
    run = traffic.run()
    assert traffic.windows(run) == {8: 3}
    traffic.cluster.admin("DELETE", "/tenants/other1")
    assert traffic.windows(run) == {}
    # Another tenant that gets the name later is another asker, without the counts of the first.
    traffic.sent({"other1": {9: 1}})
    assert traffic.windows(run) == {}
    traffic.sent({"other1": {8: 1}})
    assert traffic.windows(run) == {8: 3}


def test_a_report_that_arrives_after_its_tenant_was_deleted_is_dropped(
    traffic: Any, at_least_three: Any
) -> None:
    report = traffic.report(at_least_three(8), lookups=3)
    traffic.cluster.admin("DELETE", "/tenants/other1")
    traffic.send(report)
    assert traffic.windows(traffic.run()) == {}
    assert traffic.lookups()[0] == 3


@pytest.mark.parametrize("least_tenants", [1, 4])
def test_the_number_of_tenants_is_a_setting(
    settings: Any, traffic: Any, at_least_three: Any, least_tenants: int
) -> None:
    traffic.sent(at_least_three(8))
    run = traffic.run()
    counts = settings.window_counts.model_copy(update={"least_tenants": least_tenants})
    app = create_app(settings.model_copy(update={"window_counts": counts}), Part.CONTROL_PLANE)
    with TestClient(app) as other:
        headers = {"Authorization": "Bearer internal-token-of-the-tests"}
        found = other.get(f"/internal/v1/runs/{run}/window-counts", headers=headers).json()
    assert found["leastTenants"] == least_tenants
    assert found.get("admitted", 0) == (1 if least_tenants == 1 else 0)
