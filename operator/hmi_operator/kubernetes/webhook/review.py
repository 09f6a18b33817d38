"""Admission reviews: the API server's questions and our answers, as JSON has them."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from hmi_api.resources.domain import Domain
from hmi_api.resources.manifests import explained
from hmi_api.resources.task_adapter import TaskAdapter
from hmi_operator.admission import AdmissionDecision, Declared, Resource, decide_admission
from hmi_operator.planning import CLUSTER, Environment

_API_VERSION = "admission.k8s.io/v1"
_UNPROCESSABLE = 422
_REVIEWED = {"CREATE", "UPDATE"}
_TYPES: dict[str, type[Domain] | type[TaskAdapter]] = {"Domain": Domain, "TaskAdapter": TaskAdapter}


class MalformedReview(ValueError):
    """What was sent is no admission review."""


class Reviewer:
    """Answers admission reviews.

    ``declared`` returns what is declared under a name. ``trouble`` returns why that is not known yet, or
    None; meanwhile nothing is refused that depends on others, since the plan looks again. ``environment``
    say what can be read, where nothing is made, and how large adapters may be.
    """

    def __init__(
        self,
        declared: Declared,
        trouble: Callable[[], str | None] = lambda: None,
        environment: Environment = CLUSTER,
    ) -> None:
        self._declared = declared
        self._trouble = trouble
        self._environment = environment

    def answer(self, review: Any) -> dict[str, Any]:
        """Return the answer to a review. Raises ``MalformedReview``."""
        request = review.get("request") if isinstance(review, Mapping) else None
        if not isinstance(request, Mapping) or not isinstance(request.get("uid"), str):
            raise MalformedReview("the body is no AdmissionReview with a request and its uid")
        decision = self._verdict(request)
        response: dict[str, Any] = {"uid": request["uid"], "allowed": decision.rejection is None}
        if decision.rejection is not None:
            status = {"code": _UNPROCESSABLE, "reason": "Invalid", "message": decision.rejection}
            response["status"] = status
        if decision.warnings:
            response["warnings"] = list(decision.warnings)
        return {"apiVersion": _API_VERSION, "kind": "AdmissionReview", "response": response}

    def _verdict(self, request: Mapping[str, Any]) -> AdmissionDecision:
        if request.get("operation") not in _REVIEWED or request.get("subResource"):
            return AdmissionDecision()
        if _is_deleted(request.get("object")):
            return AdmissionDecision()
        try:
            new = _read(request.get("object"))
        except ValidationError as error:  # the API server knows another version of the types
            return AdmissionDecision(explained(error))
        if new is None:
            return AdmissionDecision()
        try:
            old = _read(request.get("oldObject"))
        except ValidationError:  # made when less was refused; correcting it must be possible
            old = None
        trouble = self._trouble()
        if trouble is None:
            return decide_admission(new, old, self._declared, self._environment)
        alone = decide_admission(new, old, lambda _: None, self._environment)
        return AdmissionDecision(alone.rejection, (f"Not held against other resources: {trouble}.",))


def _is_deleted(body: Any) -> bool:
    metadata = body.get("metadata") if isinstance(body, Mapping) else None
    return isinstance(metadata, Mapping) and metadata.get("deletionTimestamp") is not None


def _read(body: Any) -> Resource | None:
    """Read a resource without its status, which is not the user's; None where there is none of ours.

    The API server has held it against the schema already. Raises ``ValidationError``.
    """
    type_ = _TYPES.get(str(body.get("kind"))) if isinstance(body, Mapping) else None
    if type_ is None:
        return None
    return type_.model_validate({name: value for name, value in body.items() if name != "status"})
