"""Reading the counted windows of a Domain, for its run."""

from collections import defaultdict

from sqlalchemy import select
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
from hmi_control_plane.window_counts.arrays import KeyCounts
from hmi_control_plane.window_counts.privacy import readable_windows


def read_window_counts(
    session: Session, run: TrainingRun, settings: WindowCountSettings, most: int
) -> WindowCounts:
    """Return the ``most`` frequent windows of a run's Domain that the run may read.

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
    admitted = _readable(session, domain, version.layers_digest, settings)
    order = admitted.by_frequency()[:most]
    return WindowCounts(
        keys=admitted.keys[order].astype("<i8").tobytes(),
        counts=admitted.counts[order].astype("<i8").tobytes(),
        layers_digest=version.layers_digest,
        total=int(admitted.counts.sum()),
        admitted=len(admitted),
        statistics=load_lookups(session, version),
        **limits,
    )


def _readable(
    session: Session, domain: DomainRow, layers_digest: str, settings: WindowCountSettings
) -> KeyCounts:
    owner = session.scalar(select(Tenant.id).where(Tenant.name == domain.tenant))
    rows = session.execute(
        select(WindowCountRow.tenant_id, WindowCountRow.data).where(
            WindowCountRow.domain_id == domain.id,
            WindowCountRow.layers_digest == layers_digest,
            WindowCountRow.day >= settings.first_day(utc_now()),
        )
    )
    by_tenant: dict[str, list[KeyCounts]] = defaultdict(list)
    for tenant_id, data in rows:
        by_tenant[tenant_id].append(KeyCounts.from_bytes(data))
    own = by_tenant.pop(owner, []) if owner is not None else []
    return readable_windows(
        own, [KeyCounts.merge(days) for days in by_tenant.values()], settings.least_tenants
    )
