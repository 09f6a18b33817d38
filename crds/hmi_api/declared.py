"""What the operator and the control plane say to one another so that catalog and cluster stay the same.

    PUT  /cluster                                  ClusterClaim     -> ClusterClaimed; 409 OtherCluster
    GET  /domains?cursor=                          -> DeclaredPage
    GET  /adapters?domain=namespace/name&cursor=   -> DeclaredPage

A catalog belongs to one cluster, named by the uid of its namespace ``kube-system``. Its rows outlive the
objects that they were declared for where HMI was away when those were deleted: the operator looks for such
rows and erases them (``DELETE /domains/...?uid=``), unless an object of the same name adopted them before.
"""

from pydantic import Field

from hmi_api.artifacts import WireModel
from hmi_api.storable import ResourceKey, Uid


class ClusterClaim(WireModel):
    """The operator of a cluster says that it works on this catalog."""

    uid: Uid = Field(min_length=1, description="uid of the cluster's namespace kube-system.")


class ClusterClaimed(WireModel):
    """How long the catalog has belonged to this cluster."""

    known_seconds: float = Field(description="Since the first claim of this cluster.")
    inherited: bool = Field(description="Whether there were Domains or TaskAdapters before that.")


class Declared(WireModel):
    """A Domain or TaskAdapter that the catalog has."""

    key: ResourceKey = Field(description="namespace/name.")
    uid: Uid = Field(description="uid of the object that it was declared for.")


class DeclaredPage(WireModel):
    """Some of what the catalog has, in a stable order."""

    items: list[Declared]
    next_cursor: str | None = Field(default=None, description="Asks for the next page; None at the end.")
