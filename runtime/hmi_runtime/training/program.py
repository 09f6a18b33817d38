"""One run from beginning to end: what is to be done, doing it, and handing in how it ended.

A finished run's result stays in the work folder until the control plane has accepted it; a program started
again on that folder hands it in without doing the work again.
"""

import hashlib
import logging
from pathlib import Path

from pydantic import ValidationError

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunFailure, RunResult, RunSpec
from hmi_runtime.training.adapter import run_adapter
from hmi_runtime.training.checkpoint import Stages, write_atomically
from hmi_runtime.training.domain import run_domain
from hmi_runtime.training.mounts import with_mounts
from hmi_runtime.training.workplace import Workplace

RESULT_FILE = "result.json"

_LOG = logging.getLogger(__name__)


def do_run(run: RunSpec, workplace: Workplace) -> RunResult | RunFailure:
    """Do ``run``, report its end and return it.

    What the user can mend fails with its own reason; anything unexpected is logged with its traceback and
    fails as InternalError, which may be tried again. Raises only what reporting raises.
    """
    try:
        result = _result(run, workplace)
    except HmiError as error:
        failure = RunFailure(
            reason=error.reason,
            message=error.message,
            retryable=isinstance(error, NotReady),
            data=list(workplace.data),
        )
        _LOG.error("the run failed: %s", error)
    except ValidationError as error:
        # What was trained cannot be told, such as a metric that is not finite; training again gives the same.
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or error.title
        failure = RunFailure(reason="ResultInvalid", message=f"{where} of the result: {problem['msg']}.")
        _LOG.exception("the result cannot be handed in")
    except Exception as error:  # noqa: BLE001 (the edge: no run may end unreported)
        _LOG.exception("the run failed unexpectedly")
        failure = RunFailure(
            reason="InternalError",
            message=f"Training stopped on {type(error).__name__}; its log says more. Try the run again.",
            retryable=True,
        )
    else:
        try:
            workplace.reporter.complete(result)
            return result
        except InvalidInput as refused:
            _LOG.error("the result was refused: %s", refused)
            failure = RunFailure(reason=refused.reason, message=refused.message)
    workplace.reporter.fail(failure)
    return failure


def _result(run: RunSpec, workplace: Workplace) -> RunResult:
    path = workplace.folder / RESULT_FILE
    stages = Stages(workplace.folder, run_digest(run))
    if path.is_file():
        return RunResult.model_validate_json(path.read_bytes())
    run = with_mounts(run, workplace.mounts)
    if isinstance(run, DomainRunSpec):
        result = run_domain(run, stages, workplace)
    else:
        result = run_adapter(run, stages, workplace)
    write_atomically(path, result.model_dump_json(by_alias=True, indent=1).encode())
    return result


def run_digest(run: RunSpec) -> str:
    """Return a digest of all that a run is told."""
    return hashlib.sha256(run.model_dump_json(by_alias=True).encode()).hexdigest()


def read_run(path: Path, kind: str) -> RunSpec:
    """Read a run's specification from a JSON file; pydantic's ``ValidationError`` says what is wrong."""
    model: type[RunSpec] = DomainRunSpec if kind == "domain" else AdapterRunSpec
    return model.model_validate_json(path.read_bytes())
