"""The catalog: the SQL database of resources, runs, versions, artifacts, tenants, runtimes and placements.

``tables`` has all tables. The other modules read and write them, as functions over a session that the caller
opens. A function that writes expects ``Database.write()``, so that each call is part of one transaction.
There is no HTTP, no token and no money here.

Four other packages have SQL of their own: ``metering`` (usage events), ``billing`` (prices and invoices),
``auth`` (API keys) and ``gateway`` (routes).
"""
