"""The control plane: the catalog, its HTTP API, the gateway, metering and billing.

Belongs here: everything that reads or writes the catalog database, and its HTTP APIs.
Forbidden here: torch, model code, and imports of the runtime, the operator or the command line.
"""
