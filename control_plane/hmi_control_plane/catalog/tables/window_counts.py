"""The windows that traffic looks up: reports of runtimes, and counts by Domain, tenant and day."""

from datetime import date, datetime

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from hmi_control_plane.catalog.tables.columns import Base, RowId


class WindowCountRow(Base):
    """The windows that one tenant's texts had in one Domain on one day (UTC), in one compressed value.

    Deleted with the tenant and with the Domain, by the database.
    """

    __tablename__ = "window_counts"

    domain_id: Mapped[int] = mapped_column(ForeignKey("domains.id", ondelete="CASCADE"), primary_key=True)
    layers_digest: Mapped[str] = mapped_column(String(80), primary_key=True)
    """Of the version that answered: keys of windows depend on its vocabulary."""
    tenant_id: Mapped[str] = mapped_column(
        ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    day: Mapped[date] = mapped_column(primary_key=True, index=True)
    windows: Mapped[int]
    """How many different windows ``data`` has."""
    data: Mapped[bytes] = mapped_column(LargeBinary)


class DomainLookupsRow(Base):
    """How many windows were looked up in one version of a Domain since it was published."""

    __tablename__ = "domain_lookups"

    domain_version_id: Mapped[int] = mapped_column(
        ForeignKey("domain_versions.id", ondelete="CASCADE"), primary_key=True
    )
    lookups: Mapped[int] = mapped_column(BigInteger)
    hits: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[datetime]


class PendingWindowReport(Base):
    """A runtime's report that was not merged into the counts yet."""

    __tablename__ = "pending_window_reports"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    received_at: Mapped[datetime]
    data: Mapped[bytes] = mapped_column(LargeBinary)
    """The report's JSON, compressed."""


class WindowReporter(Base):
    """The last report of a runtime's incarnation, so that a report that is sent again counts once."""

    __tablename__ = "window_reporters"

    incarnation: Mapped[str] = mapped_column(String(64), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    reported_at: Mapped[datetime] = mapped_column(index=True)
