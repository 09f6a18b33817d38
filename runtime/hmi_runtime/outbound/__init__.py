"""Calls to addresses outside of the installation: data, imported adapters and base models.

Belongs here: the one way to such an address, which checks it against the ``AddressPolicy`` and goes through
the proxy that the environment names. Forbidden here: calls between HMI's own parts, which never use a proxy.
"""

from hmi_runtime.outbound.guard import Guard, configure, current_guard, refusal_in
from hmi_runtime.outbound.hub import use_guarded_client
from hmi_runtime.outbound.opening import open_address

__all__ = ["Guard", "configure", "current_guard", "open_address", "refusal_in", "use_guarded_client"]
