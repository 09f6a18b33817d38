"""Money: decimal amounts that stay exact until a line of a bill is rounded once."""

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

# Currencies whose smallest unit is not a hundredth: "minor unit" in ISO 4217's list one (SIX Group, the
# maintenance agency). Unicode's CLDR, which libraries such as Babel carry, has other digits for some of them.
_MINOR_DIGITS = {
    **dict.fromkeys(("BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG"), 0),
    **dict.fromkeys(("RWF", "UGX", "UYI", "VND", "VUV", "XAF", "XOF", "XPF"), 0),
    **dict.fromkeys(("BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"), 3),
    **dict.fromkeys(("CLF", "UYW"), 4),
}

# A 64-bit quantity times a price of 28 digits has 47 digits; a lost digit would raise Inexact.
_EXACT = Context(prec=80, traps=[Inexact, InvalidOperation])


_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?")


def _from_text(value: object) -> object:
    if isinstance(value, Decimal):
        return value
    if not isinstance(value, str):
        raise ValueError('an amount of money is a string such as "0.25", since a JSON number may lose digits')
    if not _NUMBER.fullmatch(value):
        raise ValueError('an amount of money has digits and a point only, such as "0.25"')
    return value


def _without_sign_of_zero(value: Decimal) -> Decimal:
    """Return 0 for -0, which would be shown as -0.00."""
    return value if value else Decimal(0)


def plain_text(value: Decimal) -> str:
    """Return an amount's digits without an exponent."""
    return format(value, "f")


Amount = Annotated[
    Decimal,
    BeforeValidator(_from_text, json_schema_input_type=str),
    PlainSerializer(plain_text, return_type=str),
]
"""An amount of money in JSON: a string of decimal digits, in and out."""

UnitPrice = Annotated[
    Amount,
    Field(ge=0, max_digits=28, decimal_places=12, allow_inf_nan=False),
    AfterValidator(_without_sign_of_zero),
]
"""What one unit costs: not negative, at most 12 decimal places."""

Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", description="ISO 4217 code, such as EUR.")]


def minor_digits(currency: str) -> int:
    """Return how many decimal places an amount of this currency has."""
    return _MINOR_DIGITS.get(currency, 2)


def exact_product(quantity: int, unit_price: Decimal) -> Decimal:
    """Return ``quantity * unit_price`` with every digit, less zeros at the end."""
    return _EXACT.normalize(_EXACT.multiply(Decimal(quantity), unit_price))


def exact_sum(amounts: list[Decimal]) -> Decimal:
    """Return the sum with every digit."""
    total = Decimal(0)
    for amount in amounts:
        total = _EXACT.add(total, amount)
    return total


def rounded(amount: Decimal, currency: str) -> Decimal:
    """Return ``amount`` in the currency's smallest unit; a half goes to the even neighbour."""
    unit = Decimal(1).scaleb(-minor_digits(currency))
    return amount.quantize(unit, rounding=ROUND_HALF_EVEN, context=Context(prec=80))
