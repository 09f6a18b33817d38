"""Which precision and kernel the runtimes of a pool use. The first runtime that proposes decides for all."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hmi_api.internal.precision import PrecisionChoice, PrecisionKey
from hmi_control_plane.catalog.database import insert_missing, utc_now
from hmi_control_plane.catalog.runs import to_json
from hmi_control_plane.catalog.tables import RecordedChoice

_KEY = list(PrecisionKey.model_fields)


def find(session: Session, key: PrecisionKey) -> PrecisionChoice | None:
    """Return the recorded choice for ``key``; None if there is none."""
    choice = session.scalar(select(RecordedChoice.choice).filter_by(**key.model_dump()))
    return None if choice is None else PrecisionChoice.model_validate(choice)


def record(
    session: Session, runtime_id: str, key: PrecisionKey, proposal: PrecisionChoice
) -> PrecisionChoice | None:
    """Record ``proposal`` unless there is a choice already; return the one that is recorded then.

    An insertion waits for a concurrent one of the same key, and the next statement reads what that one wrote.
    """
    row = {
        **key.model_dump(),
        "choice": to_json(proposal),
        "runtime_id": runtime_id,
        "chosen_at": utc_now(),
    }
    insert_missing(session, RecordedChoice, [row], keys=_KEY)
    return find(session, key)


def delete_choice(session: Session, choice_id: int) -> None:
    """Delete a recorded choice; idempotent."""
    session.execute(delete(RecordedChoice).where(RecordedChoice.id == choice_id))
