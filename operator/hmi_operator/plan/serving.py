"""The last conditions of a TaskAdapter: whether it is placed, loaded and answers."""

from hmi_api.conditions import TaskAdapterCondition
from hmi_api.reasons import Reason
from hmi_api.wire import AdapterView
from hmi_operator.plan.conditions import ConditionWriter


def is_loaded(view: AdapterView | None) -> bool:
    """Say whether a published version is held by a runtime."""
    return view is not None and view.current is not None and bool(view.loaded_on)


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
    if not view.loaded_on:
        _write_not_loaded(writer, view)
        return False
    writer.true(TaskAdapterCondition.LOADED, Reason.LOADED, f"Held by {', '.join(view.loaded_on)}.")
    version = view.current.version
    if up_to_date:
        writer.true(TaskAdapterCondition.READY, Reason.SERVING, f"Version {version} serves.")
    else:
        message = f"Version {version} serves while the declared spec has no version yet."
        writer.true(TaskAdapterCondition.READY, Reason.PREVIOUS_VERSION, message)
    return True


def _write_not_loaded(writer: ConditionWriter, view: AdapterView) -> None:
    if view.load_error:
        reason, _, message = view.load_error.partition(": ")
        writer.false(TaskAdapterCondition.LOADED, reason, message or view.load_error)
    elif view.scheduled_on:
        writer.unknown(TaskAdapterCondition.LOADED, Reason.LOADING, "The runtime is fetching it.")
    else:
        writer.unknown(TaskAdapterCondition.LOADED, Reason.WAITING, "Comes after Scheduled.")
