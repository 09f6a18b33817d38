"""Preparation of a request: tokenise each text once and prefetch its adapters to host memory."""

import logging
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from hmi_api.errors import Damaged, HmiError, InvalidInput
from hmi_api.internal.inference import InferRow, Truncation
from hmi_api.resources.task_adapter import TaskType
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.cache.adapter_cache import AdapterCache
from hmi_runtime.models.tokenizer import Encoding, Tokenizer
from hmi_runtime.serving.batching import BatchLimits
from hmi_runtime.serving.loaded import LoadedAdapter
from hmi_runtime.serving.requests import PendingRequest, RowGroup, Text

log = logging.getLogger(__name__)
_FEWEST_TOKENS = 3
"""An opening token, one of the text, and a closing one."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A row's text and its truncation; rows with an equal source share one ``Text``."""

    text: str
    words: tuple[str, ...] | None
    truncate: Truncation | None = None


def _source_of(row: InferRow) -> _Source:
    """Return a row's text. Raise ``InvalidInput`` (EmptyText, TextMissing) if it has none."""
    if (row.text is None) == (row.words is None):
        raise InvalidInput("TextMissing", "Give either text or words.")
    words = None if row.words is None else tuple(row.words)
    text = row.text if row.text is not None else " ".join(row.words or ())
    if not text.strip():
        raise InvalidInput("EmptyText", "The text is empty; give at least one word.")
    return _Source(text, words, row.truncate)


def group_rows(
    request: PendingRequest,
    rows: Sequence[tuple[int, LoadedAdapter]],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    limits: BatchLimits,
) -> list[RowGroup]:
    """Tokenise the texts of ``rows`` and return groups of rows with one text each, each fit for a batch.

    Rows whose text is missing, empty or longer than ``max_length`` tokens get their error here.
    """
    sources: dict[_Source, list[tuple[int, LoadedAdapter]]] = {}
    for index, adapter in rows:
        try:
            sources.setdefault(_source_of(request.rows[index]), []).append((index, adapter))
        except InvalidInput as error:
            request.set_error(index, error)
    for_tokens = {source for source, same_text in sources.items() if _labels_tokens(same_text)}
    groups: list[RowGroup] = []
    for source, encoding in _encode(sources, for_tokens, tokenizer):
        same_text = sources[source]
        try:
            text = _checked_text(source, encoding, max_length, tokenizer.special_tokens)
        except InvalidInput as error:
            for index, _ in same_text:
                request.set_error(index, error)
            continue
        tenant = same_text[0][1].id.tenant
        size = limits.most_rows(text.length)
        groups += [
            RowGroup(request, text, tenant, same_text[start : start + size])
            for start in range(0, len(same_text), size)
        ]
    return groups


def _labels_tokens(rows: Sequence[tuple[int, LoadedAdapter]]) -> bool:
    return any(adapter.task is TaskType.TOKEN_CLASSIFICATION for _, adapter in rows)


def _encode(
    sources: Iterable[_Source], for_tokens: Container[_Source], tokenizer: Tokenizer
) -> list[tuple[_Source, Encoding]]:
    """Tokenise ``sources``. Only those in ``for_tokens`` and those given as words need more than ids."""
    plain: list[_Source] = []
    whole: list[_Source] = []
    split: list[_Source] = []
    for source in sources:
        kind = split if source.words is not None else whole if source in for_tokens else plain
        kind.append(source)
    encoded = tokenizer.encode_ids([source.text for source in plain]) if plain else []
    encoded += tokenizer.encode([source.text for source in whole], None) if whole else []
    encoded += tokenizer.encode_words([source.words or () for source in split], None) if split else []
    return list(zip([*plain, *whole, *split], encoded, strict=True))


def _checked_text(source: _Source, encoding: Encoding, max_length: int, special_tokens: int) -> Text:
    is_empty = len(encoding.ids) <= special_tokens or (
        bool(encoding.word_ids) and all(word is None for word in encoding.word_ids)
    )
    if source.truncate is not None:
        encoding = _truncated(encoding, source.truncate, max_length)
    if len(encoding.ids) > max_length:
        raise InvalidInput(
            "TextTooLong",
            f"The text has {len(encoding.ids)} tokens; at most {max_length} are served here. Shorten it, or "
            "send truncate_prompt_tokens.",
        )
    if is_empty:
        raise InvalidInput("EmptyText", "The text has no tokens that the base model knows; give some words.")
    return Text(source.text, source.words, encoding)


def _truncated(encoding: Encoding, truncate: Truncation, max_length: int) -> Encoding:
    """Return the tokens to keep. Raise ``InvalidInput`` (TruncationTooLong, TruncationTooShort)."""
    tokens = max_length if truncate.tokens == -1 else truncate.tokens
    if tokens > max_length:
        raise InvalidInput(
            "TruncationTooLong",
            f"truncate_prompt_tokens is {tokens}; at most {max_length} tokens are served here. Send less, or "
            "-1 for the most.",
        )
    if tokens < _FEWEST_TOKENS:
        raise InvalidInput(
            "TruncationTooShort",
            f"truncate_prompt_tokens is {tokens}, which leaves nothing of a text between its opening and "
            f"closing tokens; send at least {_FEWEST_TOKENS}.",
        )
    return encoding.cut(tokens, truncate.side)


class Preparers:
    """Threads that prepare requests, one after another.

    A queue of the interpreter's own passes a request in a fraction of the time of an executor, which makes a
    future for each.
    """

    def __init__(self, prepare: Callable[[PendingRequest], None], threads: int) -> None:
        """Start ``threads`` threads that call ``prepare``."""
        self._prepare = prepare
        self._waiting: SimpleQueue[PendingRequest | None] = SimpleQueue()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, name=f"tokenise-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: PendingRequest) -> bool:
        """Prepare a request on the next free thread; return False if the threads were told to end."""
        if self._stopped:
            return False
        self._waiting.put(request)
        return True

    def stop(self) -> None:
        """End the threads after the requests that they are preparing; those that wait are dropped."""
        self._stopped = True
        for _ in self._threads:
            self._waiting.put(None)

    def _run(self) -> None:
        while (request := self._waiting.get()) is not None and not self._stopped:
            try:
                self._prepare(request)
            except Exception:  # the thread continues, and the caller must not wait for ever
                log.exception("a request could not be prepared")
                request.end(
                    Damaged(
                        "InferenceFailed", "The runtime could not prepare this row; its log has the cause."
                    )
                )
            del request  # a waiting thread keeps nothing of it


class AdapterPrefetch:
    """Brings the adapters of a group to host memory, then passes the group on.

    Rows whose adapter cannot be loaded get an error; the others stay together.
    """

    def __init__(self, group: RowGroup, on_ready: Callable[[RowGroup], None]) -> None:
        self._group = group
        self._on_ready = on_ready
        self._pending = len(group.rows)
        self._failed: set[int] = set()
        self._lock = threading.Lock()

    def start(self, cache: AdapterCache[AdapterWeights]) -> None:
        """Acquire the adapter of every row; it is released when the row gets its result."""
        for index, adapter in list(self._group.rows):
            cache.acquire(adapter.id, partial(self._done, index))

    def _done(self, index: int, error: HmiError | None) -> None:
        if error is not None:
            self._group.request.set_error(index, error)
        with self._lock:
            if error is not None:
                self._failed.add(index)
            self._pending -= 1
            if self._pending:
                return
        self._group.rows = [row for row in self._group.rows if row[0] not in self._failed]
        if self._group.rows:
            self._on_ready(self._group)
