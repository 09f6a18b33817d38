"""Billing: the price list, bills, and invoices.

Money is exact: decimal, never binary floating point, and never summed in SQL. Usage is counted by
``metering``.
"""
