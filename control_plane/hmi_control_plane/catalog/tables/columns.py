"""Column types that mean the same on SQLite and PostgreSQL, and the declarative base of all tables."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Integer, MetaData, Numeric, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator, TypeEngine

# SQLite assigns row ids only to a column declared INTEGER, which has 64 bits there anyway.
RowId = BigInteger().with_variant(Integer, "sqlite")

Json = JSON().with_variant(JSONB, "postgresql")
NullableJson = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""Stores None as the database's NULL, not as JSON's null."""

MONEY_PRECISION = 28
MONEY_SCALE = 12
MAX_AMOUNT = Decimal(10) ** (MONEY_PRECISION - MONEY_SCALE)
"""An amount of money must be smaller than this."""

# Constraints get stable names, so that a migration can drop on one database what it made on another.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time, in UTC when written and when read.

    SQLite stores no timezone, so UTC is added when reading. A naive datetime is refused because it would be
    ambiguous.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return ``value`` in UTC; raises ValueError when it has no timezone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a timezone is ambiguous; pass an aware datetime")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the stored time, aware and in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Money(TypeDecorator[Decimal]):
    """An exact decimal amount: NUMERIC(28, 12) on PostgreSQL, its digits as text on SQLite.

    SQLite has no decimal type and would turn NUMERIC into a binary float. So sums of money are computed in
    Python, never in SQL. Amounts with more than 12 decimal places are refused on both databases.
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
        """Return the amount without trailing zeros, so that both databases answer alike."""
        return None if value is None else _normalised(Decimal(value))


class Base(DeclarativeBase):
    """Base of every table of the catalog."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)
    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime(), Decimal: Money()}


def _normalised(value: Decimal) -> Decimal:
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
