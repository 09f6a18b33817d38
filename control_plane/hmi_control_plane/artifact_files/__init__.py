"""The artifact store's files, as the control plane handles them for those who cannot reach the store.

Belongs here: uploads on their way, making them visible, reading files, clearing what was left half done; all
over fsspec. Forbidden here: the database, HTTP, and any decision about who may publish or read.
"""

from hmi_control_plane.artifact_files.files import ArtifactFiles, Upload

__all__ = ["ArtifactFiles", "Upload"]
