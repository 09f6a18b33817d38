"""HTTP APIs beside inference: the internal and the admin API, and usage, bills and invoices for tenants.

The routers parse requests, call the catalog, metering and billing in one transaction, and build responses.
"""
