"""Responses of ``/classify`` and ``/v1/models``: parsed, and as tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hmi_cli.render.output import NONE, format_table

Answer = dict[str, Any]
TEXT_SHOWN = 56


@dataclass(frozen=True)
class Entity:
    """An entity that a token classifier found in a text."""

    text: str
    start: int
    end: int
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """One model's result for one text."""

    index: int
    model: str
    label: str
    score: float
    entities: tuple[Entity, ...] = ()
    error: str = ""

    @property
    def shown(self) -> str:
        """The result in one phrase."""
        if self.error:
            return f"error: {self.error}"
        if self.label:
            return self.label
        return ", ".join(f"{found.label}: {found.text}" for found in self.entities) or "(nothing found)"


def read_predictions(answer: Answer) -> list[Prediction]:
    """Return the predictions of a ``/classify`` response, of one model or of a fan-out, in its order.

    A model of a fan-out that failed is one prediction with its error.
    """
    predictions = []
    for part in answer.get("models") or [answer]:
        if part.get("error"):
            predictions.append(Prediction(0, part["model"], "", 0.0, error=part["error"]["message"]))
        else:
            predictions += [_prediction(item, part["model"]) for item in part["data"]]
    return predictions


def _prediction(item: Answer, model: str) -> Prediction:
    return Prediction(
        index=item["index"],
        model=model,
        label=item.get("label") or "",
        score=max(item.get("probs") or [], default=0.0),
        entities=tuple(
            Entity(found["text"], found["start"], found["end"], found["label"], found["score"])
            for found in item.get("entities") or []
        ),
    )


def predictions_table(texts: Sequence[str], answer: Answer) -> str:
    """Return one line for each text and model."""
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
    """Return one line for each model."""
    rows = [
        [model["id"], model["task"], str(model.get("version") or NONE), "True" if model["ready"] else "False"]
        for model in answer["data"]
    ]
    return format_table(["NAME", "TASK", "VERSION", "READY"], rows)


def shorten(text: str, width: int = TEXT_SHOWN) -> str:
    """Return the text on one line, cut to ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
