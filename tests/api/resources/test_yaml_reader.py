"""YAML and JSON are read as by kubectl, within bounds, and errors say where."""

import json
import time
from typing import Any

import pytest
import yaml

from hmi_api.errors import InvalidInput
from hmi_api.resources.yaml_reader import Bounds, read_documents


def read(text: str | bytes, *bounds: Bounds) -> list[Any]:
    return read_documents(text.encode() if isinstance(text, str) else text, *bounds)


def alias_bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        uses = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} [{uses}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("a: [\n", "MalformedYaml", "(line 2, column 1)"),
        ("a:\n\tb: 1", "MalformedYaml", "(line 2, column 1)"),
        (
            "a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n",
            "MalformedYaml",
            'the key "c" is written twice, on lines 3 and 5',
        ),
        ('{"a": 1, "a": 2}', "MalformedYaml", 'the key "a" is written twice'),
        ("{1: x, '1': y}", "MalformedYaml", 'the key "1" is written twice'),
        (b"a: 1\nb: \xff\n", "MalformedYaml", "line 2 has bytes that are not UTF-8"),
        ('{"a": "\\ud800"}', "MalformedYaml", "not Unicode text"),
        ('a: "\\ud800"', "MalformedYaml", "invalid Unicode"),
        ("a: \0", "MalformedYaml", "control characters"),
        ("a: .inf", "MalformedYaml", "line 1: .inf is not a number"),
        ('{"a": NaN}', "MalformedYaml", "NaN is not a number"),
        ("a: *missing", "MalformedYaml", "the alias *missing, which no anchor defines"),
        ("a: &a [*a]", "MalformedYaml", "the anchor &a contains itself"),
        ("a: !!int x", "MalformedYaml", "'x' is not a value of !!int"),
        ("a: !!python/name:os.system x", "MalformedYaml", "is not known; remove it"),
        ("!!python/object/apply:os.system ['true']", "MalformedYaml", "is not known; remove it"),
        ("? [a]\n: 1", "MalformedYaml", "line 1 has a key that is not text"),
        ("<<: 3", "MalformedYaml", "<< takes a map"),
        (alias_bomb(9), "ManifestTooLarge", "once its aliases are expanded"),
        (alias_bomb(900), "ManifestTooLarge", "once its aliases are expanded"),
        ("[" * 100_000, "ManifestTooLarge", "nested too deeply"),
        ('{"a":' * 100_000, "ManifestTooLarge", "nested too deeply"),
        ("- " * 100_000, "ManifestTooLarge", "nested too deeply"),
        ("a: " + "[" * 100_000, "ManifestTooLarge", "nested too deeply"),
        ("[" * 65 + "]" * 65, "ManifestTooLarge", "nested too deeply"),
        ("---\n" * 10_001, "ManifestTooLarge", "more than 10000 documents"),
        ("[" + "1," * 1_000_000 + "1]", "ManifestTooLarge", "more than 1000000 values"),
        ("- 1\n" * 1_000_001, "ManifestTooLarge", "more than 1000000 values"),
        ("#" * (32 * 1024 * 1024 + 1), "ManifestTooLarge", "larger than 33554432 bytes"),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_errors_say_where_and_why(text: str | bytes, reason: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    assert caught.value.reason == reason
    assert words in caught.value.message


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, alias_bomb(900), "- " * 100_000])
def test_nesting_and_aliases_are_refused_within_milliseconds(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(InvalidInput):
        read(text)
    assert time.process_time() - begun < 0.5


def test_depth_is_bounded_alike_in_json_and_yaml() -> None:
    deepest = "[" * 64 + "]" * 64
    assert read(deepest) == read(f"- {deepest[1:-1]}") == [json.loads(deepest)]
    with pytest.raises(InvalidInput):
        read(f"- {deepest}")


# As kubectl reads each, by `kubectl label --local -f FILE a=b -o json --dry-run=client`.
SCALARS: dict[str, Any] = {
    **dict.fromkeys(["yes", "Yes", "YES", "y", "Y", "on", "true", "True", "TRUE"], True),
    **dict.fromkeys(["no", "No", "NO", "n", "N", "off", "false"], False),
    **dict.fromkeys(["~", "null", "Null", "NULL"]),
    **{word: word for word in ("yEs", "nullable", "None", "=", ".", "+", "_", "1-2", "1e", "1e400")},
    **{word: word for word in ("0x", "0b2", "1:30", "2026-01-01", "2026-01-01T00:00:00Z")},
    "1": 1,
    "+1": 1,
    "-1": -1,
    "010": 8,
    "0o17": 15,
    "0x1f": 31,
    "-0x1f": -31,
    "0b101": 5,
    "1_000": 1000,
    "09": 9,
    "1.": 1,
    ".5": 0.5,
    "-.5": -0.5,
    "1e3": 1000,
    "1E3": 1000,
    "1e-4": 0.0001,
    "1.0": 1,
    "18446744073709551615": 18446744073709551615,
    "99999999999999999999": 1e20,
    '"1"': "1",
    "'no'": "no",
    "!!str 2": "2",
    '!!int "3"': 3,
    '!!float "2.5"': 2.5,
    "!!bool yes": True,
    "!!timestamp 2026-01-01": "2026-01-01",
    "!!binary aGVsbG8=": "hello",
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_are_read_as_kubectl_reads_them(text: str, value: Any) -> None:
    (found,) = read(f"a: {text}")
    assert (type(found["a"]), found["a"]) == (type(value), value)


def test_keys_are_text_and_maps_are_merged() -> None:
    text = """
1: a
true: b
base: &base {k: 1, l: 2}
made: {<<: *base, l: 3}
many: {<<: [{a: 1}, {a: 2, b: 3}]}
"""
    (found,) = read(text)
    assert found["1"] == "a"
    assert found["true"] == "b"
    assert found["made"] == {"k": 1, "l": 3}
    assert found["many"] == {"a": 1, "b": 3}


def test_documents_are_read_in_order_and_empty_ones_are_none() -> None:
    assert read("---\na: 1\n---\n# nothing\n---\n[2]\n") == [{"a": 1}, None, [2]]
    assert read("") == []
    assert read("\ufeffa: 1") == [{"a": 1}]
    assert read("{a: 1}") == [{"a": 1}]


def test_bounds_count_the_whole_text() -> None:
    bounds = Bounds(size=100, depth=3, values=10, documents=2)
    assert read("a: [1, 2, 3]", bounds) == [{"a": [1, 2, 3]}]
    for text in ("a: [1, 2, 3, 4, 5, 6, 7, 8]", "a: 1\n---\nb: 2\n---\nc: 3", "a: {b: {c: [1]}}", " " * 101):
        with pytest.raises(InvalidInput):
            read(text, bounds)


def test_without_libyaml_the_same_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert read("a: [1, {b: no}]\nc: &x {d: e}\nf: *x\n") == [
        {"a": [1, {"b": False}], "c": {"d": "e"}, "f": {"d": "e"}}
    ]
    for text in (alias_bomb(900), "- " * 100_000, "a: " + "[" * 100_000):
        with pytest.raises(InvalidInput):
            read(text)
