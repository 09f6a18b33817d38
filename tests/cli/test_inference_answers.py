"""Predictions of one model and of a fan-out."""

from hmi_cli.render.inference import predictions_table, read_predictions, shorten

ONE = {
    "model": "topic",
    "labels": ["bill", "food"],
    "data": [
        {"index": 0, "label": "food", "probs": [0.25, 0.75], "num_classes": 2},
        {"index": 1, "label": "bill", "probs": [0.5, 0.5], "num_classes": 2},
    ],
}
DAY = {"text": "9 August", "start": 3, "end": 11, "label": "DAY", "score": 0.9}
FAN_OUT = {
    "models": [
        {"model": "topic", "labels": ["bill", "food"], "data": ONE["data"][:1]},
        {
            "model": "details",
            "labels": ["O", "B-DAY"],
            "data": [{"index": 0, "num_classes": 2, "entities": [DAY]}],
        },
        {"model": "broken", "error": {"message": "not loaded", "type": "server_error"}},
    ]
}


def test_predictions_keep_the_order_of_texts() -> None:
    assert [(found.index, found.label, found.score) for found in read_predictions(ONE)] == [
        (0, "food", 0.75),
        (1, "bill", 0.5),
    ]


def test_a_fan_out_has_a_line_for_each_model_and_failure() -> None:
    shown = {found.model: found.shown for found in read_predictions(FAN_OUT)}
    assert shown == {"topic": "food", "details": "DAY: 9 August", "broken": "error: not loaded"}
    table = predictions_table(["On 9 August"], FAN_OUT).splitlines()
    assert table[0].split() == ["MODEL", "ANSWER", "SCORE", "TEXT"]
    assert len(table) == 4


def test_a_long_text_is_cut_to_one_line() -> None:
    assert shorten("a\n b" * 100, 10) == "a ba ba b…"
