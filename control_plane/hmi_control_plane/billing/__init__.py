"""Billing: what use costs, by a price list that changes over time, and invoices that stay as they were sent.

Belongs here: the price list, exact arithmetic of money, bills, the life of invoices, and their HTTP API.
Forbidden here: binary floating point, counting of use (metering's), and sums of money made in SQL.
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
