"""Connections to addresses outside of the installation: data, imported adapters and base models.

Belongs here: the guard that checks every address against the ``AddressPolicy``, and library clients that
connect through it and through the proxy that the environment names. Forbidden here: connections between
HMI's own processes, which never use a proxy.
"""
