"""When a TaskAdapter on another namespace's Domain loses its right to it.

    PUT    /adapters/{namespace}/{name}/revocation   Revocation  -> 204; the first starts the grace
    DELETE /adapters/{namespace}/{name}/revocation               -> 204; it may stand on its Domain again

It is served for a grace time that both owners see in conditions. Then its versions are withdrawn, and
requests are answered with the reason.
"""

from datetime import timedelta

from pydantic import Field, StrictBool

from hmi_api.artifacts import WireModel
from hmi_api.storable import Message, Word

GRACE = timedelta(minutes=10)
"""How long a TaskAdapter is served after it has lost its right, where nothing else is set."""


class Revocation(WireModel):
    """A TaskAdapter may not stand on its Domain any more."""

    reason: Word
    message: Message = Field(description="What a request is told once the versions are withdrawn.")
    withdraw: StrictBool = Field(default=False, description="The grace time is over: erase the versions.")
