"""A corpus, tokenised once, in files on local disk.

Distillation reads the rows in a different order every epoch, and building a table counts windows over all of
them. The files allow both without the corpus in memory and without tokenising twice. A row is found by its
number, so resuming needs no further state. Four bytes a token and nine a row.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmi_runtime.models.tokenizer import Tokenizer

HELD_OUT_SHARE = 0.05
MOST_HELD_OUT_ROWS = 2_000

TokenRows = Sequence[NDArray[np.int64]]
"""Token ids of R rows, each (T,)."""
RowIndices = Sequence[int] | NDArray[np.int64]
"""Numbers of the rows of a batch."""

_TOKENS, _OFFSETS, _HELD_OUT = "tokens.u32", "offsets.i64", "held_out.u8"
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class TokenDataset:
    """Rows of token ids, special tokens included."""

    tokens: NDArray[np.uint32]  # (N,) all rows, one after another
    offsets: NDArray[np.int64]  # (R + 1,) where each row begins; the last is N
    held_out: NDArray[np.bool_]  # (R,) whether a row is kept out of training

    @classmethod
    def write(
        cls, folder: Path, texts: Iterable[str], tokenizer: Tokenizer, max_length: int
    ) -> "TokenDataset":
        """Tokenise ``texts`` into ``folder`` (made if absent) and open it."""
        folder.mkdir(parents=True, exist_ok=True)
        rows, end = iter(texts), 0
        fractions: list[NDArray[np.float64]] = []
        with (folder / _TOKENS).open("wb") as tokens, (folder / _OFFSETS).open("wb") as offsets:
            offsets.write(np.int64(0).tobytes())
            while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                encodings = tokenizer.encode(chunk, max_length)
                ends = end + np.cumsum([len(e.ids) for e in encodings], dtype=np.int64)
                end = int(ends[-1])
                tokens.write(np.concatenate([np.array(e.ids, np.uint32) for e in encodings]).tobytes())
                offsets.write(ends.tobytes())
                fractions.append(np.array([hash_fraction(text) for text in chunk]))
        (folder / _HELD_OUT).write_bytes(_choose_held_out(np.concatenate(fractions)).tobytes())
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "TokenDataset":
        """Memory-map the files that ``write`` made."""
        return cls(
            np.memmap(folder / _TOKENS, np.uint32, "r"),
            np.memmap(folder / _OFFSETS, np.int64, "r"),
            np.memmap(folder / _HELD_OUT, np.bool_, "r"),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, (R,)."""
        return np.diff(self.offsets)

    @property
    def training_rows(self) -> NDArray[np.int64]:
        """Numbers of the rows to train on; all of them when every row is held out."""
        rows = np.flatnonzero(~self.held_out)
        return rows if len(rows) else np.arange(len(self))

    @property
    def held_out_rows(self) -> NDArray[np.int64]:
        """Numbers of the held-out rows."""
        return np.flatnonzero(self.held_out)

    def row(self, number: int) -> NDArray[np.int64]:
        """Return a row's ids (T,)."""
        return self.tokens[self.offsets[number] : self.offsets[number + 1]].astype(np.int64)

    def batch(self, numbers: RowIndices, pad_id: int) -> tuple[Tensor, Tensor]:
        """Return ids (B, T) int64, padded to the longest row, and mask (B, T) bool."""
        return pad_rows([self.row(int(number)) for number in numbers], pad_id)

    def batches(self, numbers: NDArray[np.int64], size: int, pad_id: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows ``numbers`` once, shortest first, ``size`` at a time."""
        ordered = numbers[np.argsort(self.lengths[numbers], kind="stable")]
        for start in range(0, len(ordered), size):
            yield self.batch(ordered[start : start + size], pad_id)


def pad_rows(rows: TokenRows, pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) int64, padded on the right, and mask (B, T) bool."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)  # (B, T)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)  # (B, T)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row)
        mask[index, : len(row)] = True
    return ids, mask


def hash_fraction(text: str) -> float:
    """Return a number in [0, 1) derived from the text's hash, so that equal texts get the same split."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _choose_held_out(fractions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Select the rows with the lowest fractions: 5%, at least one, at most ``MOST_HELD_OUT_ROWS``."""
    few_enough = np.sort(fractions)[min(MOST_HELD_OUT_ROWS, len(fractions)) - 1]
    held_out: NDArray[np.bool_] = fractions <= max(min(HELD_OUT_SHARE, few_enough), fractions.min())
    return held_out
