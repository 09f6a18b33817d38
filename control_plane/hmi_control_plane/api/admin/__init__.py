"""The admin API, ``/admin/v1``: what the operator of an installation calls with the admin key.

This package has tenants, API keys and lists of the catalog; ``api.usage`` and ``api.billing`` serve usage,
prices and invoices under the same prefix. There is no SQL here.
"""

PREFIX = "/admin/v1"
