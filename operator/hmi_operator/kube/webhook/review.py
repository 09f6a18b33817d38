"""Admission reviews: the API server's questions and our answers, as JSON has them."""

from collections.abc import Callable, Mapping
from typing import Any

from hmi_api.errors import InvalidInput
from hmi_api.manifests import parse_manifest
from hmi_api.namespace import Namespace
from hmi_operator.kube.webhook.rules import Declared, Resource, Verdict, judge
from hmi_operator.plan import CLUSTER

_API_VERSION = "admission.k8s.io/v1"
_UNPROCESSABLE = 422
_REVIEWED = {"CREATE", "UPDATE"}


class MalformedReview(ValueError):
    """What was sent is no admission review."""


class Reviewer:
    """Answers admission reviews.

    ``declared`` returns what is declared under a name. ``trouble`` returns why that is not known yet, or
    None; meanwhile nothing is refused that depends on others, since the plan looks again.
    """

    def __init__(self, declared: Declared, trouble: Callable[[], str | None] = lambda: None) -> None:
        self._declared = declared
        self._trouble = trouble

    def answer(self, review: Any) -> dict[str, Any]:
        """Return the answer to a review. Raises ``MalformedReview``."""
        request = review.get("request") if isinstance(review, Mapping) else None
        if not isinstance(request, Mapping) or not isinstance(request.get("uid"), str):
            raise MalformedReview("the body is no AdmissionReview with a request and its uid")
        verdict = self._verdict(request)
        response: dict[str, Any] = {"uid": request["uid"], "allowed": verdict.refusal is None}
        if verdict.refusal is not None:
            status = {"code": _UNPROCESSABLE, "reason": "Invalid", "message": verdict.refusal}
            response["status"] = status
        if verdict.warnings:
            response["warnings"] = list(verdict.warnings)
        return {"apiVersion": _API_VERSION, "kind": "AdmissionReview", "response": response}

    def _verdict(self, request: Mapping[str, Any]) -> Verdict:
        if request.get("operation") not in _REVIEWED or request.get("subResource"):
            return Verdict()
        if _is_deleted(request.get("object")):
            return Verdict()
        try:
            new = _read(request.get("object"))
        except InvalidInput as error:
            return Verdict(error.message)
        if new is None:
            return Verdict()
        try:
            old = _read(request.get("oldObject"))
        except InvalidInput:  # made when less was refused; mending it must be possible
            old = None
        trouble = self._trouble()
        if trouble is None:
            return judge(new, old, self._declared, CLUSTER)
        alone = judge(new, old, lambda _: None, CLUSTER)
        return Verdict(alone.refusal, (f"Not held against other resources: {trouble}.",))


def _is_deleted(body: Any) -> bool:
    metadata = body.get("metadata") if isinstance(body, Mapping) else None
    return isinstance(metadata, Mapping) and metadata.get("deletionTimestamp") is not None


def _read(body: Any) -> Resource | None:
    """Read a resource without its status, which is not the user's; None where there is none of ours."""
    if not isinstance(body, Mapping):
        return None
    manifest = parse_manifest({name: value for name, value in body.items() if name != "status"})
    return None if isinstance(manifest, Namespace) else manifest
