"""The gateway: tenants' inference requests.

Belongs here: the HTTP APIs for inference, the routing table, the client of the runtimes, retries and
deadlines, fan-out, and the usage events of answered requests. Forbidden here: torch, placement decisions,
writes to the catalog, prices, and database queries in a request whose route is cached.
"""
