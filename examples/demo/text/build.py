"""Builds the example data in ``../data`` from the hand-written messages in this folder.

Every message was written by hand; this program fills its slots, puts a greeting before some and a closing
after others, and writes each task's rows. A test row shares neither its sentence nor its greeting, closing
or slot values with any training row, so the test split asks for the trade's language and not for memory.

    python examples/demo/text/build.py       # writes examples/demo/data, the same bytes every time
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parent / "data"
SPLITS = ("train", "validation", "test")
VARIANTS = {"train": 3, "validation": 2, "test": 2}
CORPUS_VARIANTS = 5

SLOTS: dict[str, dict[str, list[str]]] = {
    "train": {
        "room": ["room 214", "room 12", "suite 3", "number 31", "the corner room", "room 407", "room 9"],
        "day": [
            "Monday",
            "Tuesday",
            "Wednesday",
            "Thursday",
            "Friday",
            "Saturday",
            "Sunday",
            "the 14th of May",
            "the 3rd of June",
            "9 August",
            "the 22nd",
            "Easter Monday",
            "2 July",
        ],
        "time": ["half past six", "7 pm", "ten o'clock", "a quarter to nine", "18:30", "five", "9 am"],
        "name": [
            "Okafor",
            "Mrs Lindqvist",
            "Tomás Herrera",
            "Dr Banerjee",
            "Anneke de Wit",
            "Mr Kowalski",
            "Yuki Tanabe",
            "Claire Dubois",
            "Ms Farrell",
            "Hassan",
            "the Moreau family",
        ],
        "nights": ["two nights", "three nights", "a week", "four nights", "eight nights"],
        "party": [
            "the four of us",
            "two adults",
            "my parents",
            "three friends",
            "the six of us",
            "two adults and a baby",
            "my parents and two children",
        ],
        "bike": ["city bike", "mountain bike", "touring bike", "folding bike", "road bike", "cargo bike"],
        "electric": ["e-bike", "pedelec", "electric cargo bike"],
    },
    "test": {
        "room": ["room 118", "suite 7", "number 52", "the garden room", "room 303", "room 26"],
        "day": ["Thursday the 17th", "30 September", "the 27th of March", "Whit Monday", "6 November"],
        "time": ["20:15", "eleven o'clock", "4 pm", "a quarter past eight", "half past nine"],
        "name": ["Mrs Petrov", "Liam Gallagher", "Dr Osei", "Marta Silva", "Mr Nakamura", "Solberg"],
        "nights": ["six nights", "ten days", "a fortnight", "a long weekend"],
        "party": ["the five of us", "my two sisters", "seven colleagues", "three adults"],
        "bike": ["gravel bike", "tandem", "hybrid", "recumbent"],
        "electric": ["e-mountain bike", "electric tandem"],
    },
}
GREETINGS = {
    "train": ["Good morning!", "Hello.", "Hi there!", "Good evening.", "Dear all.", "Me again."],
    "test": ["Good afternoon.", "Hey!", "Dear Sir or Madam.", "Greetings."],
}
CLOSINGS = {
    "train": [
        "Thank you.",
        "Thanks a lot!",
        "Many thanks in advance.",
        "Please let me know.",
        "Best wishes.",
    ],
    "test": ["Cheers.", "Much obliged.", "Looking forward to your answer.", "All the best."],
}
ENTITIES = {"room": "ROOM", "day": "DAY", "time": "TIME", "name": "NAME", "nights": "STAY", "party": "PARTY"}
SLOT = re.compile(r"\{(\w+)\}")
WORD = re.compile(r"\w+(?:[-'’:]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Message:
    """One hand-written message: its section, its split, the words before the bar, the text."""

    topic: str
    split: str
    marks: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Piece:
    """A stretch of a filled message; ``entity`` names what it is, if a slot gave it."""

    text: str
    entity: str | None


def read(path: Path) -> list[Message]:
    """Read a file of messages; the split is ``train`` where a section names none."""
    messages: list[Message] = []
    topic, split = "", "train"
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            topic, _, named = line.strip("[]").partition(" ")
            split = named or "train"
            continue
        marks, bar, text = line.partition(" | ")
        messages.append(Message(topic, split, tuple(marks.split()) if bar else (), text if bar else line))
    return messages


def fill(message: Message, rng: random.Random) -> list[Piece]:
    """Fill the slots of a message, with values of its own split (validation shares training's)."""
    pools = SLOTS["test" if message.split == "test" else "train"]
    pieces: list[Piece] = []
    for index, part in enumerate(SLOT.split(message.text)):
        if index % 2 == 0:
            pieces.append(Piece(part, None))
            continue
        pool = "electric" if part == "bike" and message.topic == "electric" else part
        pieces.append(Piece(rng.choice(pools[pool]), ENTITIES.get(part)))
    return [piece for piece in pieces if piece.text]


def dress(pieces: list[Piece], split: str, rng: random.Random) -> list[Piece]:
    """Put a greeting before some messages and a closing after some."""
    kind = "test" if split == "test" else "train"
    first = pieces[0]
    dressed = [Piece(first.text[0].upper() + first.text[1:], first.entity), *pieces[1:]]
    if rng.random() < 0.4:
        dressed = [Piece(rng.choice(GREETINGS[kind]) + " ", None), *dressed]
    if rng.random() < 0.4:
        dressed = [*dressed, Piece(" " + rng.choice(CLOSINGS[kind]), None)]
    return dressed


def plain(pieces: list[Piece]) -> str:
    """Return the text of a message, with ``an`` before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", "".join(piece.text for piece in pieces))


def tagged(pieces: list[Piece]) -> tuple[list[str], list[str]]:
    """Return the words of a message and their BIO tags."""
    words: list[str] = []
    tags: list[str] = []
    for piece in pieces:
        for index, word in enumerate(WORD.findall(piece.text)):
            words.append(word)
            tags.append("O" if piece.entity is None else ("B-" if index == 0 else "I-") + piece.entity)
    return words, tags


def variants(
    messages: list[Message], count: int, rng: random.Random
) -> Iterator[tuple[Message, list[Piece]]]:
    """Yield every message ``count`` times, filled and dressed anew."""
    for message in messages:
        for _ in range(count):
            yield message, dress(fill(message, rng), message.split, rng)


def write_task(name: str, messages: list[Message], row: Callable[[Message, list[Piece]], object]) -> None:
    """Write the three splits of a task, shuffled, without repeats."""
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rng = random.Random(f"{name}/{split}")  # noqa: S311 (same rows every time, nothing secret)
        chosen = [message for message in messages if message.split == split]
        rows = variants(chosen, VARIANTS[split], rng)
        lines = list(dict.fromkeys(json.dumps(row(*item), ensure_ascii=False) for item in rows))
        rng.shuffle(lines)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def write_corpus(name: str, messages: list[Message], replies: list[Message]) -> None:
    """Write a corpus: the replies and every message that is in no test split, a few times over, shuffled."""
    rng = random.Random(name)  # noqa: S311 (same rows every time, nothing secret)
    seen = [message for message in messages if message.split != "test"]
    lines = [plain(pieces) for _, pieces in variants(seen, CORPUS_VARIANTS, rng)]
    lines = list(dict.fromkeys([*lines, *(reply.text for reply in replies)]))
    rng.shuffle(lines)
    (OUT / "corpus").mkdir(parents=True, exist_ok=True)
    (OUT / "corpus" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Write every task and corpus of the examples."""
    hotel, workshop, other = (read(HERE / f"{name}.txt") for name in ("hotel", "workshop", "other"))
    replies = read(HERE / "replies.txt")

    write_task("guest-topic", hotel, lambda m, p: {"text": plain(p), "label": m.topic})
    write_task("guest-urgency", hotel, lambda m, p: {"text": plain(p), "label": m.marks[0]})
    write_task("message-tone", hotel, lambda m, p: {"text": plain(p), "label": m.marks[1]})
    write_task("stay-details", hotel, lambda m, p: dict(zip(("tokens", "tags"), tagged(p), strict=True)))
    write_task("repair-topic", workshop, lambda m, p: {"text": plain(p), "label": m.topic})
    write_task("safe-to-ride", workshop, lambda m, p: {"text": plain(p), "label": m.marks[0]})
    desk = {id(m): name for name, group in (("hotel", hotel), ("workshop", workshop)) for m in group}
    everything = [*hotel, *workshop, *other]
    write_task("mail-desk", everything, lambda m, p: {"text": plain(p), "label": desk.get(id(m), "other")})

    write_corpus("hotel", hotel, [reply for reply in replies if reply.topic == "hotel"])
    write_corpus("workshop", workshop, [reply for reply in replies if reply.topic == "workshop"])
    write_corpus("desk", everything, replies)


if __name__ == "__main__":
    main()
