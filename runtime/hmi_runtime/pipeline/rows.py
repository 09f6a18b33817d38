"""What travels through the pipeline: requests, their texts, and groups of rows that share a text."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from hmi_api.errors import HmiError, InvalidInput, NotReady
from hmi_api.internal.inference import InferRow, RowError, RowResult
from hmi_api.resources.task_adapter import TaskType
from hmi_api.tag_schemes import TagScheme
from hmi_runtime.base import Encoding
from hmi_runtime.cache import AdapterId
from hmi_runtime.pipeline.domains import ServedDomain

DEADLINE_REASON = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class Route:
    """What an adapter's name leads to: one version of it and the domain it stands on."""

    adapter: AdapterId
    task: TaskType
    labels: tuple[str, ...]
    domain: ServedDomain
    tag_scheme: TagScheme | None = None
    """Of a token task: how its labels say where entities begin and end."""
    tenant_id: str = ""
    """Whose it is; empty from control planes of before, which did not say."""

    @property
    def tenant(self) -> str:
        """The adapter's tenant: what its key starts with."""
        return self.adapter.key.partition("/")[0]


class PendingRequest:
    """A request whose rows are answered one by one, from any thread; the future gets all of them.

    ``answered`` is called after each row. ``tenant_id`` says whose adapters may answer; None: anyone's.
    """

    def __init__(
        self,
        rows: Sequence[InferRow],
        deadline: float,
        answered: Callable[[], None],
        tenant_id: str | None = None,
    ) -> None:
        self.rows = rows
        self.tenant_id = tenant_id
        self._answered = answered
        self.deadline = deadline
        self.answer: Future[list[RowResult]] = Future()
        self._results: list[RowResult | None] = [None] * len(rows)
        self._remaining = len(rows)
        self._lock = threading.Lock()
        if not rows:
            self.answer.set_result([])

    def over(self, now: float) -> bool:
        """Return whether nobody waits for the answer any more."""
        return self.answer.cancelled() or now > self.deadline

    def finish(self, index: int, result: RowResult) -> None:
        """Answer one row; the last one completes the request."""
        with self._lock:
            if self._results[index] is not None:
                raise ValueError(f"row {index} is answered already")
            self._results[index] = result
            self._remaining -= 1
            last = self._remaining == 0
        self._answered()
        if last and self.answer.set_running_or_notify_cancel():
            self.answer.set_result([r for r in self._results if r is not None])

    def is_answered(self, index: int) -> bool:
        """Return whether a row has its answer."""
        return self._results[index] is not None

    def fail(self, index: int, error: HmiError) -> None:
        """Answer one row with an error."""
        self.finish(index, RowResult(error=row_error(error)))


def row_error(error: HmiError) -> RowError:
    """Return the HTTP status that an error means for a row, with its reason and message."""
    if isinstance(error, InvalidInput):
        status = 400
    elif error.reason == DEADLINE_REASON:
        status = 504
    elif isinstance(error, NotReady):
        status = 503
    else:
        status = 500
    return RowError(status=status, reason=error.reason, message=error.message)


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """One tokenised text. ``words`` when it came split; else ``text``. Compared by identity."""

    text: str
    words: tuple[str, ...] | None
    encoding: Encoding

    @property
    def length(self) -> int:
        """Tokens, special ones included."""
        return len(self.encoding.ids)


@dataclass(slots=True)
class Group:
    """Rows of one request that ask about one text on one base model: they ride in one batch."""

    request: PendingRequest
    text: Text
    tenant: str
    rows: list[tuple[int, Route]] = field(default_factory=list)
    arrived: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return self.text.length

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.rows)
