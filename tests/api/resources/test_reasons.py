"""The reference lists every reason that the code uses, and no others."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the helper beside this file

from reason_literals import reason_literals

from hmi_api.resources.reasons import GROUPS, Reason
from hmi_api.resources.reference import reference

OF_THE_PLAN = {reason.value for reason in Reason}
OF_FAILURES = {reason for group in GROUPS.values() for reason in group}
OF_KUBERNETES = {
    "AlreadyExists",
    "BadRequest",
    "Conflict",
    "Expired",
    "Invalid",
    "NotFound",
    "RequestEntityTooLarge",
}
"""Reasons of Kubernetes itself: of the embedded resource API, and of a watch that ended."""


def test_every_reason_in_the_code_is_in_the_reference() -> None:
    found = reason_literals()
    assert {"TenantChanged", "NameTaken", "InvalidField", "InternalError", "BodyTooLarge"} <= set(found)
    unknown = set(found) - OF_THE_PLAN - OF_FAILURES - OF_KUBERNETES
    missing = [f"{found[reason]}: {reason}" for reason in sorted(unknown)]
    assert not missing, "add these to hmi_api.resources.reasons, then `make crds`: " + "; ".join(missing)


def test_the_reference_lists_no_unused_reason() -> None:
    assert sorted(OF_FAILURES - set(reason_literals())) == []


def test_each_reason_has_one_entry_with_advice() -> None:
    assert sum(len(group) for group in GROUPS.values()) == len(OF_FAILURES)
    assert not OF_THE_PLAN & OF_FAILURES
    page = reference()
    for group in GROUPS.values():
        for reason, advice in group.items():
            assert advice.endswith(".")
            assert page.count(f"| `{reason}` |") == 1
