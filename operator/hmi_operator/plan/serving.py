"""The last conditions of a TaskAdapter: whether it is placed, loaded and answers."""

from collections.abc import Sequence

from hmi_api.conditions import TaskAdapterCondition
from hmi_api.phases import Phase
from hmi_api.reasons import Reason
from hmi_api.wire import AdapterVersionView, AdapterView, EarlierVersion
from hmi_operator.plan.conditions import ConditionWriter


def is_served(view: AdapterView | None) -> bool:
    """Say whether a runtime answers with any published version."""
    return view is not None and view.current is not None and bool(view.loaded_on or view.earlier)


def is_settled(view: AdapterView | None) -> bool:
    """Say whether the current version is loaded, and no runtime serves an earlier one any more."""
    return view is not None and bool(view.loaded_on) and not view.earlier


def phase_of_change_over(view: AdapterView | None) -> str | None:
    """Return the phase while only earlier versions than the published one serve; else None."""
    if view is None or not is_served(view) or view.loaded_on:
        return None
    return Phase.DEGRADED.value if view.load_error else Phase.UPDATING.value


def write_serving(writer: ConditionWriter, view: AdapterView | None, up_to_date: bool) -> bool:
    """Write Scheduled and Loaded, and Ready where it is True; return whether it is.

    Ready is True while any version answers: what serves goes on whatever becomes of the next.
    """
    if view is None or view.current is None:
        writer.unknown(TaskAdapterCondition.SCHEDULED, Reason.WAITING, "Comes after Published.")
        writer.unknown(TaskAdapterCondition.LOADED, Reason.WAITING, "Comes after Scheduled.")
        return False
    if view.scheduled_on:
        where = f"Placed on {', '.join(view.scheduled_on)}."
        writer.true(TaskAdapterCondition.SCHEDULED, Reason.PLACED, where)
    else:
        message = "No runtime has room for it; start one, or give the present ones more room."
        writer.false(TaskAdapterCondition.SCHEDULED, Reason.NO_RUNTIME, message)
    _write_loaded(writer, view, view.current)
    if not is_served(view):
        return False
    _write_ready(writer, view, view.current, up_to_date)
    return True


def _write_loaded(writer: ConditionWriter, view: AdapterView, current: AdapterVersionView) -> None:
    """Write Loaded, which is about the current version; its message says of others where they serve."""
    meanwhile = _held(view.earlier)
    if view.loaded_on:
        said = [
            f"Version {current.version} is held by {', '.join(view.loaded_on)}.",
            *_missing(view),
            *meanwhile,
        ]
        writer.true(TaskAdapterCondition.LOADED, Reason.LOADED, " ".join(said))
    elif view.load_error:
        reason, _, message = view.load_error.partition(": ")
        writer.false(TaskAdapterCondition.LOADED, reason, " ".join([message or view.load_error, *meanwhile]))
    elif view.scheduled_on:
        fetching = f"Version {current.version} is being fetched by {', '.join(view.scheduled_on)}."
        writer.unknown(TaskAdapterCondition.LOADED, Reason.LOADING, " ".join([fetching, *meanwhile]))
    else:
        writer.unknown(
            TaskAdapterCondition.LOADED, Reason.WAITING, " ".join(["Comes after Scheduled.", *meanwhile])
        )


def _write_ready(
    writer: ConditionWriter, view: AdapterView, current: AdapterVersionView, up_to_date: bool
) -> None:
    if not view.loaded_on:
        newest = max(earlier.version for earlier in view.earlier)
        message = f"Version {newest} serves until version {current.version} is loaded."
        writer.true(TaskAdapterCondition.READY, Reason.PREVIOUS_VERSION, message)
    elif up_to_date:
        writer.true(TaskAdapterCondition.READY, Reason.SERVING, f"Version {current.version} serves.")
    else:
        message = f"Version {current.version} serves while the declared spec has no version yet."
        writer.true(TaskAdapterCondition.READY, Reason.PREVIOUS_VERSION, message)


def _missing(view: AdapterView) -> list[str]:
    """Return what is to be said of runtimes that should have the current version and do not, if any."""
    missing = [runtime for runtime in view.scheduled_on if runtime not in view.loaded_on]
    if not missing:
        return []
    why = f": {view.load_error}" if view.load_error else "."
    return [f"It is not yet loaded by {', '.join(missing)}{why}"]


def _held(earlier: Sequence[EarlierVersion]) -> list[str]:
    """Return a sentence for each earlier version that serves, the newest first."""
    holders: dict[int, list[str]] = {}
    for one in earlier:
        holders.setdefault(one.version, []).append(one.runtime)
    return [
        f"Version {version} serves on {', '.join(holders[version])}."
        for version in sorted(holders, reverse=True)
    ]
