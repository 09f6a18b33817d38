"""The admin API, ``/admin/v1``: what the operator of an installation calls with the admin key.

Belongs here: tenants, their keys, and lists of what the catalog holds. Forbidden here: SQL, a tenant's own
view, and usage, prices and invoices, which metering and billing serve under the same prefix.
"""

from hmi_control_plane.admin_api.router import PREFIX, build

__all__ = ["PREFIX", "build"]
