"""The artifact store: what training publishes and runtimes fetch, named and checked by digest.

Belongs here: manifests, verification, publishing and fetching over fsspec or through the control plane, and
the local copies on disk. Forbidden here: what is inside the files (tables, layers, adapters read their own),
torch, and pickle.
"""

from hmi_runtime.artifacts.base import Store, manifest_of_copy
from hmi_runtime.artifacts.over_http import HttpArtifactStore
from hmi_runtime.artifacts.store import ArtifactStore

__all__ = ["ArtifactStore", "HttpArtifactStore", "Store", "manifest_of_copy"]
