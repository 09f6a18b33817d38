"""Preparing a request: find every row's route, tokenise every text once, bring the adapters to memory."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.wire import InferRow
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.base import Encoding, Tokenizer
from hmi_runtime.cache import AdapterCache
from hmi_runtime.pipeline.rows import Group, PendingRequest, Route, Text


@dataclass(frozen=True, slots=True)
class _Source:
    """A row's text as it came; equal ones are one text."""

    text: str
    words: tuple[str, ...] | None


def source_of(row: InferRow) -> _Source:
    """Return a row's text; ``InvalidInput`` EmptyText or TextMissing when there is nothing to read."""
    if (row.text is None) == (row.words is None):
        raise InvalidInput("TextMissing", "Give either text or words.")
    words = None if row.words is None else tuple(row.words)
    text = row.text if row.text is not None else " ".join(row.words or ())
    if not text.strip():
        raise InvalidInput("EmptyText", "The text is empty; give at least one word.")
    return _Source(text, words)


def group_rows(
    request: PendingRequest,
    routes: Sequence[tuple[int, Route]],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    most: int,
) -> list[Group]:
    """Return groups of at most ``most`` rows, each of one text, all texts tokenised in two calls.

    Rows whose text is missing, empty or longer than ``max_length`` tokens are answered here.
    """
    sources: dict[_Source, list[tuple[int, Route]]] = {}
    for index, route in routes:
        try:
            sources.setdefault(source_of(request.rows[index]), []).append((index, route))
        except InvalidInput as error:
            request.fail(index, error)
    groups: list[Group] = []
    for source, encoding in _encode(list(sources), tokenizer, max_length):
        rows = sources[source]
        try:
            text = _checked(source, encoding, max_length)
        except InvalidInput as error:
            for index, _ in rows:
                request.fail(index, error)
            continue
        tenant = rows[0][1].tenant
        groups += [Group(request, text, tenant, rows[at : at + most]) for at in range(0, len(rows), most)]
    return groups


def _encode(
    sources: Sequence[_Source], tokenizer: Tokenizer, max_length: int
) -> list[tuple[_Source, Encoding]]:
    texts = [source for source in sources if source.words is None]
    split = [source for source in sources if source.words is not None]
    encoded = tokenizer.encode([source.text for source in texts], max_length) if texts else []
    encoded += tokenizer.encode_words([source.words or () for source in split], max_length) if split else []
    return list(zip([*texts, *split], encoded, strict=True))


def _checked(source: _Source, encoding: Encoding, max_length: int) -> Text:
    if encoding.truncated:
        raise InvalidInput(
            "TextTooLong", f"The text has more than {max_length} tokens, the most served here; shorten it."
        )
    if all(word is None for word in encoding.word_ids):
        raise InvalidInput("EmptyText", "The text has no tokens that the base model knows; give some words.")
    return Text(source.text, source.words, encoding)


class Arrival:
    """Waits until every adapter of a group is in host memory or known to be broken, then sends it on.

    Rows whose adapter is broken are answered; the others go on together.
    """

    def __init__(self, group: Group, send: Callable[[Group], None]) -> None:
        self._group = group
        self._send = send
        self._awaited = len(group.rows)
        self._broken: set[int] = set()
        self._lock = threading.Lock()

    def bring(self, cache: AdapterCache[AdapterWeights]) -> None:
        """Ask for every row's adapter."""
        for index, route in list(self._group.rows):
            cache.hold(route.adapter, lambda error, index=index: self._arrived(index, error))  # type: ignore[misc]

    def _arrived(self, index: int, error: HmiError | None) -> None:
        if error is not None:
            self._group.request.fail(index, error)
        with self._lock:
            if error is not None:
                self._broken.add(index)
            self._awaited -= 1
            if self._awaited:
                return
        self._group.rows = [row for row in self._group.rows if row[0] not in self._broken]
        if self._group.rows:
            self._send(self._group)
