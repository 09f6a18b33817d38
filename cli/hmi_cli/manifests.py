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


@dataclass(frozen=True)
class Manifest:
    """One object of a manifest, and the file that it is from."""

    body: dict[str, Any]
    origin: str


def load(names: list[str], *, recursive: bool) -> list[Manifest]:
    """Return the objects of files, folders and ``-``, in order. Raise the first ``UsageError``."""
    manifests, errors = parse(names, recursive=recursive)
    if errors:
        raise errors[0]
    return manifests


def parse(names: list[str], *, recursive: bool) -> tuple[list[Manifest], list[UsageError]]:
    """Return the objects of files, folders and ``-`` in order, and an error for each other document.

    Raise ``UsageError`` if a path does not exist or there is no document at all.
    """
    found = [entry for name in names for entry in _parse_one(name, recursive=recursive)]
    if not found:
        raise UsageError(
            f"no objects in {', '.join(names)}",
            hint="folders are searched for .yaml, .yml and .json; -R goes deeper",
        )
    manifests = [entry for entry in found if isinstance(entry, Manifest)]
    return manifests, [entry for entry in found if isinstance(entry, UsageError)]


def _parse_one(name: str, *, recursive: bool) -> Iterator[Manifest | UsageError]:
    if name == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        yield from _parse(sys.stdin.buffer.read(BOUNDS.size + 1), "standard input", Path.cwd())
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
        yield UsageError(f"{origin} cannot be read as YAML: {error.message}")
        return
    for body in _bodies(documents):
        try:
            _check(body, origin)
        except UsageError as error:
            yield error
        else:
            _resolve(body.get("spec"), folder)
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
            f"{origin} has a document that is not an object: it needs apiVersion, kind and metadata"
        )
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not _is_text(metadata.get("name")):
        raise UsageError(f"a {body['kind']} in {origin} has no metadata.name")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _resolve(value: Any, folder: Path) -> None:
    """Make every relative ``uri`` in a spec absolute; nesting is bounded by ``BOUNDS``."""
    if isinstance(value, dict):
        uri = value.get("uri")
        if (
            isinstance(uri, str)
            and uri
            and "://" not in uri
            and "\0" not in uri
            and not Path(uri).is_absolute()
        ):
            value["uri"] = os.path.realpath(folder / uri)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _resolve(child, folder)
