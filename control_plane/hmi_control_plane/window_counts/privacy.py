"""The privacy rule: which windows of a Domain's traffic a run in the owner's namespace may read.

A run's Job works in the namespace of the Domain and is not trusted with the texts of other tenants. A window
is three tokens of a text, and counts of rare windows can give a text away.
"""

from collections.abc import Sequence

from hmi_control_plane.window_counts.arrays import KeyCounts, windows_by_number_of_parts


def readable_windows(own: Sequence[KeyCounts], others: Sequence[KeyCounts], least_tenants: int) -> KeyCounts:
    """Return the windows that a run may read, and their counts.

    ``own`` are windows of the Domain's own tenant, which count in full. ``others`` has one element for each
    other tenant. A window of others is admitted if at least ``least_tenants`` of them have it; only then do
    their counts enter the sum.
    """
    return KeyCounts.merge([*own, windows_by_number_of_parts(others, least_tenants)])
