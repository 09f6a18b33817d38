"""Manifests: YAML files, folders and standard input, read the way kubectl reads them.

An address inside a manifest that is a relative path is meant from the manifest's own folder, so it is made
absolute here: the server may run elsewhere in the file tree.
"""

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmi_api.errors import InvalidInput
from hmi_api.resources.yaml_reader import Bounds, read_documents
from hmi_cli.errors import NotUnderstood, usage_error

BOUNDS = Bounds()
SUFFIXES = {".yaml", ".yml", ".json"}
_KUSTOMIZATION = "kustomization"  # says how kubectl puts a folder together, and is no object
ADDRESSES = (
    ("spec", "baseModel", "uri"),
    ("spec", "corpus", "*", "uri"),
    ("spec", "data", "train", "uri"),
    ("spec", "data", "evaluation", "uri"),
    ("spec", "data", "unlabelled", "uri"),
    ("spec", "source", "uri"),
)


@dataclass(frozen=True)
class Manifest:
    """One object of a manifest and where it was read."""

    body: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Reading:
    """The objects that were found, in order, and what was wrong with whatever is none."""

    manifests: list[Manifest]
    faults: list[NotUnderstood]


def load(names: list[str], *, recursive: bool) -> list[Manifest]:
    """Read every object of files, folders and ``-`` in order; ``CliError`` where something is no object."""
    reading = read(names, recursive=recursive)
    if reading.faults:
        raise reading.faults[0]
    return reading.manifests


def read(names: list[str], *, recursive: bool) -> Reading:
    """The same, but what is no object stops nothing; ``CliError`` where a path or every object is missing."""
    found = [entry for name in names for entry in _load_one(name, recursive=recursive)]
    if not found:
        raise usage_error(
            f"no objects in {', '.join(names)}",
            hint="folders are searched for .yaml, .yml and .json; -R goes deeper",
        )
    return Reading(
        [entry for entry in found if isinstance(entry, Manifest)],
        [entry for entry in found if isinstance(entry, NotUnderstood)],
    )


def _load_one(name: str, *, recursive: bool) -> Iterator[Manifest | NotUnderstood]:
    if name == "-":
        yield from _parse(_standard_input(), "standard input", Path.cwd())
        return
    path = Path(name)
    try:
        if not path.exists():
            raise usage_error(f'the path "{name}" does not exist')
        files = _files(path, recursive=recursive)
    except OSError as error:
        raise usage_error(f"{name} cannot be read: {error.strerror}") from error
    for file in files:
        try:
            with file.open("rb") as opened:
                content = opened.read(BOUNDS.size + 1)
        except OSError as error:
            yield usage_error(f"{file} cannot be read: {error.strerror}")
        else:
            yield from _parse(content, str(file), file.resolve().parent)


def in_apply_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return Namespaces first, then Domains, then TaskAdapters: what others name comes before them."""
    order = {"Namespace": 0, "TaskAdapter": 2}
    return sorted(manifests, key=lambda manifest: order.get(manifest.body["kind"], 1))


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise usage_error("standard input is closed")
    return sys.stdin.buffer.read(BOUNDS.size + 1)


def _files(path: Path, *, recursive: bool) -> list[Path]:
    if not path.is_dir():
        return [path]
    candidates = path.rglob("*") if recursive else path.iterdir()
    return sorted(
        file
        for file in candidates
        if file.is_file() and file.suffix in SUFFIXES and file.stem != _KUSTOMIZATION
    )


def _parse(content: bytes, origin: str, folder: Path) -> Iterator[Manifest | NotUnderstood]:
    try:
        documents = read_documents(content, BOUNDS)
    except InvalidInput as error:
        yield usage_error(f"{origin} is not YAML that can be applied: {error.message}")
        return
    for body in _bodies(documents):
        try:
            _check(body, origin)
        except NotUnderstood as error:
            yield error
        else:
            _resolve(body, folder)
            yield Manifest(body, origin)


def _bodies(documents: Iterable[Any]) -> Iterator[Any]:
    """Yield what stands for an object: documents that are not empty, and in place of a List its items."""
    waiting = deque(documents)
    while waiting:
        document = waiting.popleft()
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
            waiting.extendleft(reversed(items if isinstance(items, list) else []))
        elif document is not None:
            yield document


def _check(body: Any, origin: str) -> None:
    """``CliError`` unless this can be an object; whether it is a good one the server says."""
    if not isinstance(body, dict) or not all(_is_text(body.get(word)) for word in ("apiVersion", "kind")):
        raise usage_error(
            f"{origin} holds something that is no object: it needs apiVersion, kind and metadata"
        )
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not _is_text(metadata.get("name")):
        raise usage_error(f"a {body['kind']} in {origin} has no metadata.name")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _resolve(body: dict[str, Any], folder: Path) -> None:
    for address in ADDRESSES:
        for holder in _holders(body, address[:-1]):
            uri = holder.get(address[-1])
            if isinstance(uri, str) and uri and "://" not in uri and "\0" not in uri:
                holder[address[-1]] = os.path.realpath(folder / uri) if not Path(uri).is_absolute() else uri


def _holders(value: Any, address: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the mappings at an address; whatever has another shape is left for the server to refuse."""
    if not address:
        if isinstance(value, dict):
            yield value
    elif address[0] == "*":
        for item in value if isinstance(value, list) else []:
            yield from _holders(item, address[1:])
    elif isinstance(value, dict):
        yield from _holders(value.get(address[0]), address[1:])
