"""Reconciliation: from what tenants declare to training runs, catalog entries and status.

Belongs here: the pure plan, the engine that carries plans out through ports, the client of the control
plane's internal API, and the embedded default's ends of those ports (``local``). Forbidden here: torch,
the catalog database, and imports of the control plane, the runtime or the command line.
"""
