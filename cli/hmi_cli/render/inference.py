"""Answers of ``/classify`` and ``/v1/models``: read into plain types, and shown as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmi_cli.render.tables import format_table

Answer = dict[str, Any]
TEXT_SHOWN = 56


@dataclass(frozen=True)
class Stretch:
    """A labelled stretch of a text."""

    text: str
    start: int
    end: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """One model's answer to one text."""

    index: int
    model: str
    label: str
    score: float
    tokens: tuple[Stretch, ...] = ()
    error: str = ""

    @property
    def shown(self) -> str:
        """The answer in one phrase."""
        if self.error:
            return f"error: {self.error}"
        if self.label:
            return self.label
        return ", ".join(f"{token.label}: {token.text}" for token in self.tokens) or "(nothing found)"


def read_predictions(answer: Answer) -> list[Prediction]:
    """Return the predictions of a ``/classify`` answer, for one model or many, in the order they came."""
    return [_prediction(item, str(answer.get("model") or "")) for item in answer["data"]]


def _prediction(item: Answer, model: str) -> Prediction:
    error = item.get("error")
    probabilities = item.get("probs") or []
    return Prediction(
        index=int(item["index"]),
        model=str(item.get("model") or model),
        label=str(item.get("label") or ""),
        score=max(probabilities, default=0.0),
        tokens=tuple(
            Stretch(token["text"], token["start"], token["end"], token["label"], token["score"])
            for token in item.get("tokens") or []
        ),
        error=str(error["message"] if isinstance(error, dict) else error) if error else "",
    )


def predictions_table(texts: Sequence[str], answer: Answer) -> str:
    """Return one line a text and model."""
    rows = [
        [
            prediction.model,
            prediction.shown,
            f"{prediction.score:.2f}" if prediction.label else "-",
            shorten(texts[prediction.index]),
        ]
        for prediction in read_predictions(answer)
    ]
    return format_table(["MODEL", "ANSWER", "SCORE", "TEXT"], rows)


def models_table(answer: Answer) -> str:
    """Return one line a model."""
    return format_table(["MODEL"], [[model["id"]] for model in answer["data"]])


def shorten(text: str, width: int = TEXT_SHOWN) -> str:
    """Return the text on one line, cut where it is longer than ``width``."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
