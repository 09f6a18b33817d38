"""The last conditions of a TaskAdapter: whether it is placed, loaded and answers."""

from collections.abc import Sequence

from hmi_api.internal.catalog import AdapterVersionView, AdapterView, EarlierVersion, LoadError
from hmi_api.internal.runtimes import PASSING_LOAD_FAILURES
from hmi_api.resources.conditions import Phase, TaskAdapterCondition
from hmi_api.resources.reasons import Reason
from hmi_operator.planning.conditions import ConditionWriter
from hmi_operator.planning.stages import previous_version_serves


def is_served(view: AdapterView | None) -> bool:
    """Say whether a runtime answers with any published version."""
    return view is not None and view.current is not None and bool(view.loaded_on or view.earlier)


def is_settled(view: AdapterView | None) -> bool:
    """Say whether the current version is loaded, and no runtime serves an earlier one any more."""
    return view is not None and bool(view.loaded_on) and not view.earlier


def phase_of_serving(view: AdapterView | None) -> str | None:
    """Return the phase while the published version, which is the declared one, serves nowhere; else None."""
    if view is None or view.loaded_on:
        return None
    if is_served(view):
        return Phase.DEGRADED.value if view.load_error else Phase.UPDATING.value
    if not view.scheduled_on:
        return Phase.NO_RUNTIME.value
    return Phase.FAILED.value if _is_lasting(view.load_error) else Phase.LOADING.value


def write_serving(
    writer: ConditionWriter, view: AdapterView | None, up_to_date: bool, types: Sequence[str]
) -> bool:
    """Write Scheduled and Loaded, and Ready where it is True; return whether it is.

    Scheduled and Loaded are about the declared spec's version, and so come after Published. Ready is True
    while any version answers: what serves goes on whatever becomes of the next. ``types`` are the conditions
    before Ready, which says what the next version waits for.
    """
    if view is None or view.current is None or not up_to_date:
        writer.unknown(TaskAdapterCondition.SCHEDULED, Reason.WAITING, "Comes after Published.")
        serving = _held(_serving(view)) if view is not None else []
        message = " ".join(["Comes after Scheduled.", *serving])
        writer.unknown(TaskAdapterCondition.LOADED, Reason.WAITING, message)
    else:
        _write_scheduled(writer, view)
        _write_loaded(writer, view, view.current)
    if view is None or view.current is None or not is_served(view):
        return False
    if up_to_date:
        _write_ready(writer, view, view.current)
    else:
        message = previous_version_serves(writer, types, max(one.version for one in _serving(view)))
        writer.true(TaskAdapterCondition.READY, Reason.PREVIOUS_VERSION, message)
    return True


def write_serving_summary(writer: ConditionWriter, view: AdapterView) -> None:
    """Write Reconciling and Stalled of a TaskAdapter whose declared spec is published.

    It is in effect when every runtime on which it is placed holds it and none serves an earlier version any
    more. Replicas for which there is no runtime are not waited for while another serves.
    """
    missing = [runtime for runtime in view.scheduled_on if runtime not in view.loaded_on]
    if not view.scheduled_on and not view.loaded_on:
        writer.reconciling(Reason.NO_RUNTIME, _no_runtime(view))
    elif missing and view.load_error is not None:
        write = writer.stalled if _is_lasting(view.load_error) else writer.reconciling
        write(view.load_error.reason, view.load_error.message)
    elif missing or view.earlier:
        message = " ".join([*_missing(view), *_held(view.earlier)])
        writer.reconciling(Reason.LOADING, message)
    else:
        writer.at_rest()


def _write_scheduled(writer: ConditionWriter, view: AdapterView) -> None:
    if not view.scheduled_on:
        writer.false(TaskAdapterCondition.SCHEDULED, Reason.NO_RUNTIME, _no_runtime(view))
        return
    lacking = view.record.replicas - len(view.scheduled_on)
    more = f" {lacking} of {view.record.replicas} replicas wait for a runtime." if lacking > 0 else ""
    writer.true(
        TaskAdapterCondition.SCHEDULED, Reason.PLACED, f"Placed on {', '.join(view.scheduled_on)}.{more}"
    )


def _no_runtime(view: AdapterView) -> str:
    if view.runtimes == 0:
        return "No runtime is running; start one (runtime pools may be scaled to zero)."
    return "No runtime has room for it; start one, or give the present ones more room."


def _is_lasting(load_error: LoadError | None) -> bool:
    """Say whether a load failed for a cause that will not pass by itself."""
    return load_error is not None and load_error.reason not in PASSING_LOAD_FAILURES


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
        message = " ".join([view.load_error.message, *meanwhile])
        writer.false(TaskAdapterCondition.LOADED, view.load_error.reason, message)
    elif view.scheduled_on:
        fetching = f"Version {current.version} is being fetched by {', '.join(view.scheduled_on)}."
        writer.unknown(TaskAdapterCondition.LOADED, Reason.LOADING, " ".join([fetching, *meanwhile]))
    else:
        writer.unknown(
            TaskAdapterCondition.LOADED, Reason.WAITING, " ".join(["Comes after Scheduled.", *meanwhile])
        )


def _write_ready(writer: ConditionWriter, view: AdapterView, current: AdapterVersionView) -> None:
    if view.loaded_on:
        writer.true(TaskAdapterCondition.READY, Reason.SERVING, f"Version {current.version} serves.")
        return
    newest = max(earlier.version for earlier in view.earlier)
    message = f"Version {newest} serves until version {current.version} is loaded."
    writer.true(TaskAdapterCondition.READY, Reason.PREVIOUS_VERSION, message)


def _serving(view: AdapterView) -> list[EarlierVersion]:
    """Return what runtimes serve, the current version too, as what is earlier than the declared spec's."""
    if view.current is None:
        return list(view.earlier)
    held = [EarlierVersion(runtime=name, version=view.current.version) for name in view.loaded_on]
    return [*held, *view.earlier]


def _missing(view: AdapterView) -> list[str]:
    """Return what is to be said of runtimes that should have the current version and do not, if any."""
    missing = [runtime for runtime in view.scheduled_on if runtime not in view.loaded_on]
    if not missing:
        return []
    error = view.load_error
    why = f": {error.reason}: {error.message}" if error else "."
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
