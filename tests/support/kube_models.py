"""The client's models as the JSON that it sends."""

from typing import Any

from kubernetes.aio.client import ApiClient


def as_json(model: Any) -> Any:
    """Return what the client sends for a model."""
    api: Any = ApiClient.__new__(ApiClient)  # no connection is needed
    return api.sanitize_for_serialization(model)
