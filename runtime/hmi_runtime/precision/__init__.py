"""The choice of the frozen upper layers' kernel, made on the machine that serves.

Belongs here: which kernels may be taken, how they are timed and compared with float32, and where a choice
is kept. Forbidden here: the kernels themselves (``adapters``), HTTP servers, and any tenant's text.
"""
