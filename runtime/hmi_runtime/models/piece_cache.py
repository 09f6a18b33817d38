"""Token ids of a text from those of its pieces between spaces, most of which were seen before.

A WordPiece tokenizer normalises character by character and splits at white space before anything else, so
the ids of a text are those of its pieces, one after another. Looking pieces up takes a tenth of the time of
the library, which has no cache for this kind of tokenizer.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

_MOST_PIECES = 1 << 16
_LONGEST_PIECE = 48
"""Characters of a piece that is kept; longer ones are seldom words."""
_PROBE = "A probe, of [CLS] two-part words"


def splits_at_spaces(parts: Mapping[str, Any], backend: Any) -> bool:
    """Return whether ``backend`` is a tokenizer whose texts can be put together from pieces.

    ``parts`` is its tokenizer.json. Tokens that were added and are not special may contain spaces.
    """
    kinds = [(parts[name] or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
    if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
        return False
    if not all(token["special"] for token in parts["added_tokens"]):
        return False
    return bool(PieceCache(backend).ids(_PROBE) == backend.encode(_PROBE).ids)


class PieceCache:
    """Ids of the pieces of texts. Thread-safe: entries are only added, and a full cache is emptied."""

    def __init__(self, backend: Any) -> None:
        """``backend`` is a ``tokenizers.Tokenizer`` that ``splits_at_spaces``."""
        self._backend = backend
        empty = backend.encode("").ids
        self._first, self._last = empty[:1], empty[1:]
        self._ids: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens included."""
        known = self._ids
        pieces = text.split(" ")
        try:
            found = [known[piece] for piece in pieces]
        except KeyError:
            new = list({piece for piece in pieces if piece not in known})
            if any(len(piece) > _LONGEST_PIECE for piece in new):
                return list(self._backend.encode_batch_fast([text])[0].ids)
            encoded = self._backend.encode_batch_fast(new, add_special_tokens=False)
            added = {piece: one.ids for piece, one in zip(new, encoded, strict=True)}
            found = [added[piece] if piece in added else known[piece] for piece in pieces]
            if len(known) + len(added) > _MOST_PIECES:
                self._ids = added
            else:
                known.update(added)
        return [*self._first, *chain.from_iterable(found), *self._last]
