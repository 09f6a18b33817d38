"""HTTP APIs beside inference: the internal and the admin API, and usage, bills and invoices for tenants.

The routers parse requests, call the catalog, metering and billing in one transaction, and build responses.
"""

from typing import Any

from fastapi import Response

NO_CONTENT: Any = {"status_code": 204, "response_class": Response}
"""Keyword arguments of a route that answers without a body."""
