"""Execute one training run and report its result or failure.

The result of a finished run stays in the work folder. A program that is started again on that folder reports
it again without training.
"""

import ctypes
import hashlib
import logging
import sys
from pathlib import Path

from pydantic import ValidationError

from hmi_api.durable_files import write_atomically
from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.runs import AdapterRunSpec, DomainRunSpec, RunFailure, RunResult, RunSpec
from hmi_api.internal.trainer import RESULT_FILE
from hmi_runtime.training.adapter_run import run_adapter
from hmi_runtime.training.checkpoint import Stages
from hmi_runtime.training.domain_run import run_domain
from hmi_runtime.training.elapsed import ElapsedTime
from hmi_runtime.training.mounts import resolve_mounts
from hmi_runtime.training.refresh_run import run_refresh
from hmi_runtime.training.run_context import RunContext

_LOG = logging.getLogger(__name__)


def execute_run(run: RunSpec, context: RunContext) -> RunResult | RunFailure:
    """Execute ``run``, report its result or failure, and return it.

    An error that the user can correct is reported with its own reason. Any other error is logged with its
    traceback and reported as InternalError, which can be retried. Raises only what reporting raises.
    """
    try:
        result = _result(run, context)
    except HmiError as error:
        failure = RunFailure(
            reason=error.reason,
            message=error.message,
            retryable=isinstance(error, NotReady),
            data=list(context.data),
        )
        _LOG.error("the run failed: %s", error)
    except ValidationError as error:
        # The result cannot be reported, for example because a metric is not finite. A retry gives the same.
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or error.title
        failure = RunFailure(reason="ResultInvalid", message=f"{where} of the result: {problem['msg']}.")
        _LOG.exception("the result is invalid and cannot be reported")
    except Exception as error:  # noqa: BLE001 (outermost level: every run's end is reported)
        _LOG.exception("the run failed unexpectedly")
        failure = RunFailure(
            reason="InternalError",
            message=f"Training stopped on {type(error).__name__}; see its log. Try the run again.",
            retryable=True,
        )
    else:
        try:
            context.reporter.complete(result)
            return result
        except InvalidInput as error:
            _LOG.error("the result was refused: %s", error)
            failure = RunFailure(reason=error.reason, message=error.message)
    context.reporter.fail(failure)
    return failure


def _result(run: RunSpec, context: RunContext) -> RunResult:
    path = context.folder / RESULT_FILE
    stages = Stages(context.folder, hashlib.sha256(run.model_dump_json(by_alias=True).encode()).hexdigest())
    if path.is_file():
        return RunResult.model_validate_json(path.read_bytes())
    run = resolve_mounts(run, context.mounts)
    with ElapsedTime(stages.folder) as elapsed:
        if isinstance(run, DomainRunSpec) and run.refresh is not None:
            result = run_refresh(run, run.refresh, stages, context)
        elif isinstance(run, DomainRunSpec):
            result = run_domain(run, stages, context)
        else:
            result = run_adapter(run, stages, context)
        result = result.model_copy(update={"training_seconds": elapsed.seconds})
    write_atomically(path, result.model_dump_json(by_alias=True, indent=1).encode())
    return result


def load_run_spec(path: Path, kind: str) -> RunSpec:
    """Read a run's specification from a JSON file. Raises pydantic's ``ValidationError`` if it is invalid."""
    model: type[RunSpec] = DomainRunSpec if kind == "domain" else AdapterRunSpec
    return model.model_validate_json(path.read_bytes())


_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h; setting it turns off glibc's own adaptation
_LARGE_BYTES = 4 << 20


def return_large_blocks_to_os() -> bool:
    """Make malloc return blocks of 4 MiB and more to the system when they are freed; return whether it did.

    The length of batches varies from step to step. By default glibc raises its threshold when the first large
    tensor is freed, and keeps blocks of up to 32 MiB in its heap. Long-lived blocks prevent the heap from
    shrinking: a Domain's run grew from 2 to 5 GB in an hour. A fixed threshold costs some page faults a step.
    Without glibc nothing happens.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, _LARGE_BYTES) == 1
