"""The control plane's internal API, under ``/internal/v1``: its types and its client.

The operator, trainers, runtimes and the gateway are its clients. Every request carries a bearer token. The
parts of an installation are upgraded together, so these types may change with any release.
"""
