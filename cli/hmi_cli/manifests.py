"""Manifests: YAML files, folders and standard input, read as kubectl reads them.

Relative paths in a manifest's addresses are relative to its folder. They are made absolute here, since the
server may run in another folder.
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
from hmi_cli.errors import UsageError

BOUNDS = Bounds()
SUFFIXES = {".yaml", ".yml", ".json"}
_KUSTOMIZATION = "kustomization"  # tells kubectl how to combine a folder's files; not an object
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
    """One object of a manifest, and the file that it is from."""

    body: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class ParsedManifests:
    """The objects in order, and an error for every document that is not an object."""

    manifests: list[Manifest]
    errors: list[UsageError]


def load(names: list[str], *, recursive: bool) -> list[Manifest]:
    """Return the objects of files, folders and ``-``, in order. Raise the first ``UsageError``."""
    parsed = parse(names, recursive=recursive)
    if parsed.errors:
        raise parsed.errors[0]
    return parsed.manifests


def parse(names: list[str], *, recursive: bool) -> ParsedManifests:
    """Return the objects of files, folders and ``-``, and what is wrong with the rest.

    Raise ``UsageError`` if a path does not exist or there is no document at all.
    """
    found = [entry for name in names for entry in _parse_one(name, recursive=recursive)]
    if not found:
        raise UsageError(
            f"no objects in {', '.join(names)}",
            hint="folders are searched for .yaml, .yml and .json; -R goes deeper",
        )
    return ParsedManifests(
        [entry for entry in found if isinstance(entry, Manifest)],
        [entry for entry in found if isinstance(entry, UsageError)],
    )


def _parse_one(name: str, *, recursive: bool) -> Iterator[Manifest | UsageError]:
    if name == "-":
        yield from _parse(_standard_input(), "standard input", Path.cwd())
        return
    path = Path(name)
    try:
        if not path.exists():
            raise UsageError(f'the path "{name}" does not exist')
        files = _files(path, recursive=recursive)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    for file in files:
        try:
            with file.open("rb") as opened:
                content = opened.read(BOUNDS.size + 1)
        except OSError as error:
            yield UsageError(f"{file} cannot be read: {error.strerror}")
        else:
            yield from _parse(content, str(file), file.resolve().parent)


def in_apply_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Return Namespaces first, then Domains, then TaskAdapters, so that references exist."""
    order = {"Namespace": 0, "TaskAdapter": 2}
    return sorted(manifests, key=lambda manifest: order.get(manifest.body["kind"], 1))


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise UsageError("standard input is closed")
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


def _parse(content: bytes, origin: str, folder: Path) -> Iterator[Manifest | UsageError]:
    try:
        documents = read_documents(content, BOUNDS)
    except InvalidInput as error:
        yield UsageError(f"{origin} is not YAML that can be applied: {error.message}")
        return
    for body in _bodies(documents):
        try:
            _check(body, origin)
        except UsageError as error:
            yield error
        else:
            _resolve(body, folder)
            yield Manifest(body, origin)


def _bodies(documents: Iterable[Any]) -> Iterator[Any]:
    """Yield the documents that are not empty; the items of a List instead of the List."""
    waiting = deque(documents)
    while waiting:
        document = waiting.popleft()
        if isinstance(document, dict) and document.get("kind") == "List":
            items = document.get("items")
            waiting.extendleft(reversed(items if isinstance(items, list) else []))
        elif document is not None:
            yield document


def _check(body: Any, origin: str) -> None:
    """Raise ``UsageError`` if this cannot be an object; the server validates the rest."""
    if not isinstance(body, dict) or not all(_is_text(body.get(word)) for word in ("apiVersion", "kind")):
        raise UsageError(
            f"{origin} holds a document that is not an object: it needs apiVersion, kind and metadata"
        )
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not _is_text(metadata.get("name")):
        raise UsageError(f"a {body['kind']} in {origin} has no metadata.name")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _resolve(body: dict[str, Any], folder: Path) -> None:
    for address in ADDRESSES:
        for holder in _holders(body, address[:-1]):
            uri = holder.get(address[-1])
            if isinstance(uri, str) and uri and "://" not in uri and "\0" not in uri:
                holder[address[-1]] = os.path.realpath(folder / uri) if not Path(uri).is_absolute() else uri


def _holders(value: Any, address: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the mappings at an address; the server refuses whatever has another shape."""
    if not address:
        if isinstance(value, dict):
            yield value
    elif address[0] == "*":
        for item in value if isinstance(value, list) else []:
            yield from _holders(item, address[1:])
    elif isinstance(value, dict):
        yield from _holders(value.get(address[0]), address[1:])
