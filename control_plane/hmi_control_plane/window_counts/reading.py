"""Reading the counted windows of a Domain and its children, for the Domain's run."""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from hmi_api.errors import InvalidInput
from hmi_api.internal.runs import RunView
from hmi_api.internal.window_counts import WindowCounts
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.domains import load_lookups
from hmi_control_plane.catalog.resources import current_version, get_resource
from hmi_control_plane.catalog.runs import require_open
from hmi_control_plane.catalog.tables import DomainRow, Tenant, TrainingRun, WindowCountRow
from hmi_control_plane.http.errors import NotFound
from hmi_control_plane.settings import WindowCountSettings
from hmi_control_plane.window_counts.arrays import KeyCounts, fair_limit
from hmi_control_plane.window_counts.children import PlaceDomains, places_sharing_layers
from hmi_control_plane.window_counts.privacy import Place, split_by_place

_DOMAINS_READ = 2
"""Windows of a Domain and all its children that are read, as a multiple of those that one Domain may have."""
_ROWS_AT_ONCE = 32


def read_window_counts(
    session: Session, run: TrainingRun, settings: WindowCountSettings, most: int, *, children: bool = False
) -> WindowCounts:
    """Return the ``most`` frequent windows of a run's Domain that the run may read.

    With ``children``, those of children with the same layers are counted too. Windows that one of them alone
    looked up, and takes in by itself, are returned apart, without their counts. If the children have very
    many windows, the least frequent ones of the longest rows are left out.

    Raises InvalidInput (NoDomainRun), Conflict (RunFinished), NotFound (UnknownDomain) if the Domain was
    deleted or replaced since.
    """
    spec = RunView.model_validate(run).spec
    if spec.kind != "domain":
        raise InvalidInput("NoDomainRun", f"Run {run.id} trains a TaskAdapter, which looks up no windows.")
    require_open(run)
    domain = get_resource(session, DomainRow, spec.namespace, spec.name)
    if domain.uid != run.uid:
        raise NotFound("UnknownDomain", f"Domain {domain.key} was replaced since run {run.id} began.")
    version = current_version(session, domain)
    limits = {"least_tenants": settings.least_tenants, "days": settings.days}
    if version is None:
        return WindowCounts(layers_digest="", **limits)
    found = (
        places_sharing_layers(session, domain, version.layers_digest)
        if children
        else [PlaceDomains(frozenset({domain.id}))]
    )
    places = _read_places(session, domain, version.layers_digest, found, settings)
    admitted, theirs = split_by_place(places, settings.least_tenants)
    order = admitted.by_frequency()[:most]
    return WindowCounts(
        keys=admitted.keys[order].astype("<i8").tobytes(),
        counts=admitted.counts[order].astype("<i8").tobytes(),
        belongs_to_child=theirs.most_frequent(most).keys.astype("<i8").tobytes(),
        layers_digest=version.layers_digest,
        total=int(admitted.counts.sum()),
        admitted=len(admitted),
        statistics=load_lookups(session, version),
        **limits,
    )


def _read_places(
    session: Session,
    domain: DomainRow,
    layers_digest: str,
    places: list[PlaceDomains],
    settings: WindowCountSettings,
) -> list[Place]:
    """Return what was looked up in each of a Domain's places."""
    owner = session.scalar(select(Tenant.id).where(Tenant.name == domain.tenant))
    wanted = [_rows_of(place, layers_digest, settings) for place in places]
    limit = _row_limit(session, wanted, settings)
    return [
        _read_place(session, place, rows, owner, limit) for place, rows in zip(places, wanted, strict=True)
    ]


def _rows_of(
    place: PlaceDomains, layers_digest: str, settings: WindowCountSettings
) -> Sequence[ColumnElement[bool]]:
    return (
        WindowCountRow.domain_id.in_(place.domain_ids),
        WindowCountRow.layers_digest == layers_digest,
        WindowCountRow.day >= settings.first_day(utc_now()),
    )


def _row_limit(
    session: Session, wanted: Sequence[Sequence[ColumnElement[bool]]], settings: WindowCountSettings
) -> int:
    """Return how many windows of a row are read, so that memory does not grow with the number of children."""
    sizes = [size for rows in wanted for size in session.scalars(select(WindowCountRow.windows).where(*rows))]
    return max(1, fair_limit(sizes, _DOMAINS_READ * settings.windows_per_domain))


def _read_place(
    session: Session, place: PlaceDomains, rows: Sequence[ColumnElement[bool]], owner: str | None, limit: int
) -> Place:
    query = select(WindowCountRow.tenant_id, WindowCountRow.data).where(*rows)
    by_tenant: dict[str, list[KeyCounts]] = defaultdict(list)
    for tenant_id, data in session.execute(query.execution_options(yield_per=_ROWS_AT_ONCE)):
        by_tenant[tenant_id].append(KeyCounts.from_bytes(data).most_frequent(limit))
    merged = {tenant: KeyCounts.merge(parts) for tenant, parts in by_tenant.items()}
    own = merged.pop(owner or "", None)
    return Place(KeyCounts.merge([] if own is None else [own]), merged, place.takes_in_from)
