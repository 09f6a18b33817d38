"""The artifact store: what training publishes and runtimes fetch, named and checked by digest.

Belongs here: manifests, verification, publishing and fetching over fsspec, and the local copies on disk.
Forbidden here: what is inside the files (tables, layers, adapters read their own), torch, and pickle.
"""

from hmi_runtime.artifacts.store import ArtifactStore, manifest_of_copy

__all__ = ["ArtifactStore", "manifest_of_copy"]
