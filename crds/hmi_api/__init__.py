"""The contract: resource types, conditions, errors, artifact manifests and internal wire types.

Belongs here: what two or more planes must agree on, as pydantic types and pure functions, what is
generated from them (``crd`` and ``reference``, which write files only when run as programs), and how the
parts show one another who they are (``bearer``, ``callers``, ``token_review``, ``internal_auth``), and where
artifacts lie in the store (``artifact_root``, for those who bring fsspec).
Forbidden here: other I/O, torch, SQL, HTTP servers, and imports of any other HMI package.
"""
