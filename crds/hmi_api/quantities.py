"""Kubernetes' quantities, from 0: ``500m``, ``2``, ``4Gi``."""

import re
from decimal import Decimal

QUANTITY = r"^[+]?([0-9]+([.][0-9]*)?|[.][0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,2})?$"
"""What is a quantity from 0, to Python and to the API server."""
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def parse_quantity(amount: int | str) -> Decimal | None:
    """Return the number that a quantity stands for; None where it is none, or below 0."""
    found = re.fullmatch(QUANTITY, str(amount))
    if found is None:
        return None
    number, suffix = Decimal(found[1]), found[3] or ""
    if suffix in _BINARY:
        return number * Decimal(2 ** _BINARY[suffix])
    return number.scaleb(_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:]))
