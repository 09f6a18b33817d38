"""Billing: the price list, bills, and invoices.

Money is exact: decimal, never binary floating point, and never summed in SQL. Usage is counted by
``metering``.
"""

from hmi_control_plane.billing.bill import Bill, BillLine
from hmi_control_plane.billing.invoices import bill_for
from hmi_control_plane.billing.prices import PriceChange, PriceList

__all__ = [
    "Bill",
    "BillLine",
    "PriceChange",
    "PriceList",
    "bill_for",
]
