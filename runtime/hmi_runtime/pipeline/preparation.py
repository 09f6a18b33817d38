"""Preparing a request: find every row's route, tokenise every text once, bring the adapters to memory."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmi_api.errors import HmiError, InvalidInput
from hmi_api.internal.inference import InferRow, Truncation
from hmi_runtime.adapters.weights import AdapterWeights
from hmi_runtime.base import Encoding, Tokenizer
from hmi_runtime.cache import AdapterCache
from hmi_runtime.pipeline.rows import Group, PendingRequest, Route, Text

_FEWEST_TOKENS = 3
"""An opening token, one of the text, and a closing one."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A row's text as it came, and how to cut it; equal ones are one text."""

    text: str
    words: tuple[str, ...] | None
    truncate: Truncation | None = None


def source_of(row: InferRow) -> _Source:
    """Return a row's text; ``InvalidInput`` EmptyText or TextMissing when there is nothing to read."""
    if (row.text is None) == (row.words is None):
        raise InvalidInput("TextMissing", "Give either text or words.")
    words = None if row.words is None else tuple(row.words)
    text = row.text if row.text is not None else " ".join(row.words or ())
    if not text.strip():
        raise InvalidInput("EmptyText", "The text is empty; give at least one word.")
    return _Source(text, words, row.truncate)


def group_rows(
    request: PendingRequest,
    routes: Sequence[tuple[int, Route]],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    most: int,
) -> list[Group]:
    """Return groups of at most ``most`` rows, each of one text, all texts tokenised in two calls.

    Rows whose text is missing, empty, or longer than ``max_length`` tokens without a cut are answered here.
    """
    sources: dict[_Source, list[tuple[int, Route]]] = {}
    for index, route in routes:
        try:
            sources.setdefault(source_of(request.rows[index]), []).append((index, route))
        except InvalidInput as error:
            request.fail(index, error)
    groups: list[Group] = []
    for source, encoding in _encode(list(sources), tokenizer):
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


def _encode(sources: Sequence[_Source], tokenizer: Tokenizer) -> list[tuple[_Source, Encoding]]:
    texts = [source for source in sources if source.words is None]
    split = [source for source in sources if source.words is not None]
    encoded = tokenizer.encode([source.text for source in texts], None) if texts else []
    encoded += tokenizer.encode_words([source.words or () for source in split], None) if split else []
    return list(zip([*texts, *split], encoded, strict=True))


def _checked(source: _Source, encoding: Encoding, max_length: int) -> Text:
    if source.truncate is not None:
        encoding = _truncated(encoding, source.truncate, max_length)
    if len(encoding.ids) > max_length:
        raise InvalidInput(
            "TextTooLong",
            f"The text has {len(encoding.ids)} tokens; at most {max_length} are served here. Shorten it, or "
            "send truncate_prompt_tokens.",
        )
    if all(word is None for word in encoding.word_ids):
        raise InvalidInput("EmptyText", "The text has no tokens that the base model knows; give some words.")
    return Text(source.text, source.words, encoding)


def _truncated(encoding: Encoding, truncate: Truncation, max_length: int) -> Encoding:
    """Return the tokens that are to be kept; raises InvalidInput (TruncationTooLong, TruncationTooShort)."""
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
