"""The privacy rule: which windows of a Domain's traffic a run in the owner's namespace may read.

A run's Job works in the namespace of the Domain and is not trusted with the texts of other tenants. A window
is three tokens of a text, and counts of rare windows can give a text away.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hmi_control_plane.window_counts.arrays import Int64s, KeyCounts, windows_by_number_of_parts


@dataclass(frozen=True)
class Place:
    """What was looked up in a Domain itself, or in one of its children and in the child's descendants.

    Children that never take in windows belong to the Domain's own place.
    """

    own: KeyCounts
    """Windows of the tenant that the Domain, not the child, belongs to."""
    others: Mapping[str, KeyCounts]
    """Windows of other tenants, by tenant id."""
    takes_in_from: int | None = None
    """Lookups from which the place takes in a window by itself; None if it never does."""


def split_by_place(places: Sequence[Place], least_tenants: int) -> tuple[KeyCounts, KeyCounts]:
    """Return the windows of a Domain and those that belong to one of its children, with their counts.

    The first of ``places`` is the Domain itself; the others are its children. The Domain's own tenant counts
    in full. A window of others is admitted if at least ``least_tenants`` of them have it, in whichever
    places; only then do their counts enter the sum. A window belongs to a child if admitted lookups were
    made there alone, and enough for it to take it in. What was not admitted has no influence on this.
    """
    by_tenant: dict[str, list[KeyCounts]] = {}
    for place in places:
        for tenant, windows in place.others.items():
            by_tenant.setdefault(tenant, []).append(windows)
    tenants = [KeyCounts.merge(windows) for windows in by_tenant.values()]
    admitted = windows_by_number_of_parts(tenants, least_tenants).keys
    read = [
        KeyCounts.merge([place.own, *(_only(one, admitted) for one in place.others.values())])
        for place in places
    ]
    keys, askers = np.unique(np.concatenate([one.keys for one in read]), return_counts=True)
    alone = keys[askers == 1]
    theirs = KeyCounts.merge(_taken_in(one, alone, place) for one, place in zip(read, places, strict=True))
    everything = KeyCounts.merge(read)
    stays = ~np.isin(everything.keys, theirs.keys, assume_unique=True)
    return KeyCounts(everything.keys[stays], everything.counts[stays]), theirs


def _only(windows: KeyCounts, keys: Int64s) -> KeyCounts:
    among = np.isin(windows.keys, keys, assume_unique=True)
    return KeyCounts(windows.keys[among], windows.counts[among])


def _taken_in(windows: KeyCounts, alone: Int64s, place: Place) -> KeyCounts:
    """Return those ``windows`` of a place that no other place has and that it takes in by itself."""
    if place.takes_in_from is None:
        return KeyCounts.merge([])
    enough = windows.counts >= place.takes_in_from
    return _only(KeyCounts(windows.keys[enough], windows.counts[enough]), alone)
