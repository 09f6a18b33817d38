"""Column types that mean the same on SQLite and PostgreSQL."""

from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import JSON, BigInteger, DateTime, Integer, Numeric, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

# SQLite numbers rows by itself only for a column declared INTEGER, which is 64 bits wide there anyway.
RowId = BigInteger().with_variant(Integer, "sqlite")

# None is the database's NULL, and not JSON's null.
NullableJson = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Json = JSON().with_variant(JSONB, "postgresql")
NullableJson = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""Where None is no value, not JSON's null."""

MONEY_PRECISION = 28
MONEY_SCALE = 12
LARGEST_AMOUNT = Decimal(10) ** (MONEY_PRECISION - MONEY_SCALE)
"""What an amount of money must be smaller than."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, timezone-aware and in UTC on the way in and out.

    SQLite keeps no zone, so it is taken off there and put back on reading. A naive value is refused:
    it would be ambiguous.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return ``value`` in UTC; raises ValueError when it has no timezone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a timezone is ambiguous; pass an aware datetime")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the stored moment, aware and in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Money(TypeDecorator[Decimal]):
    """An exact decimal amount: NUMERIC(28, 12) on PostgreSQL, its digits as text on SQLite.

    SQLite has no decimal type and would turn NUMERIC into a binary float, so it gets text; sums of money
    are therefore made in Python, never in SQL. Amounts with more than 12 decimal places are refused on both.
    """

    impl = Numeric(MONEY_PRECISION, MONEY_SCALE)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Decimal] | TypeEngine[str]:
        """Return the type the dialect stores."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(MONEY_PRECISION + 2))
        return dialect.type_descriptor(Numeric(MONEY_PRECISION, MONEY_SCALE))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | str | None:
        """Return what is sent to the database; raises ValueError when a digit would be lost."""
        if value is None:
            return None
        exact = _within_scale(value)
        return format(exact, "f") if dialect.name == "sqlite" else exact

    def process_result_value(self, value: Decimal | str | None, dialect: Dialect) -> Decimal | None:
        """Return the amount with trailing zeros removed, so that both databases answer alike."""
        if value is None:
            return None
        return plain(Decimal(value))


def plain(value: Decimal) -> Decimal:
    """Return ``value`` without trailing zeros and without an exponent: 1.50 -> 1.5, 1E+3 -> 1000."""
    normal = value.normalize()
    return normal.quantize(Decimal(1)) if normal == normal.to_integral_value() else normal


def _within_scale(value: Decimal) -> Decimal:
    exponent = value.normalize().as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is not an amount of money")
    if -exponent > MONEY_SCALE:
        raise ValueError(f"{value} has more than {MONEY_SCALE} decimal places")
    if value.adjusted() >= MONEY_PRECISION - MONEY_SCALE:
        raise ValueError(f"{value} has more than {MONEY_PRECISION - MONEY_SCALE} digits before the point")
    return value
