"""Manifests: YAML files, folders and standard input, read the way kubectl reads them.

An address inside a manifest that is a relative path is meant from the manifest's own folder, so it is made
absolute here: the server may run elsewhere in the file tree.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hmi_cli.errors import usage_error

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


def load(names: list[str], *, recursive: bool) -> list[Manifest]:
    """Read every object of files, folders and ``-`` in order; ``CliError`` where one is not YAML."""
    found = [manifest for name in names for manifest in _load_one(name, recursive=recursive)]
    if not found:
        raise usage_error(
            f"no objects in {', '.join(names)}",
            hint="folders are searched for .yaml, .yml and .json; -R goes deeper",
        )
    return found


def _load_one(name: str, *, recursive: bool) -> Iterator[Manifest]:
    if name == "-":
        yield from _parse(sys.stdin.read(), "standard input", Path.cwd())
        return
    path = Path(name)
    if not path.exists():
        raise usage_error(f'the path "{name}" does not exist')
    for file in _files(path, recursive=recursive):
        try:
            text = file.read_text()
        except UnicodeDecodeError as error:
            raise usage_error(f"{file} is not text: {error.reason}") from error
        yield from _parse(text, str(file), file.resolve().parent)


def _files(path: Path, *, recursive: bool) -> list[Path]:
    if path.is_file():
        return [path]
    candidates = path.rglob("*") if recursive else path.iterdir()
    return sorted(
        file
        for file in candidates
        if file.is_file() and file.suffix in SUFFIXES and file.stem != _KUSTOMIZATION
    )


def _parse(text: str, origin: str, folder: Path) -> Iterator[Manifest]:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise usage_error(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
    for document in documents:
        for body in _objects(document, origin):
            _resolve(body, folder)
            yield Manifest(body, origin)


def _objects(document: Any, origin: str) -> Iterator[dict[str, Any]]:
    if document is None:
        return
    if not isinstance(document, dict) or not document.get("kind") or not document.get("apiVersion"):
        raise usage_error(
            f"{origin} holds something that is no object: it needs apiVersion, kind and metadata"
        )
    if document["kind"] == "List":
        for item in document.get("items") or []:
            yield from _objects(item, origin)
        return
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise usage_error(f"a {document['kind']} in {origin} has no metadata.name")
    yield document


def _resolve(body: dict[str, Any], folder: Path) -> None:
    for address in ADDRESSES:
        for holder in _holders(body, address[:-1]):
            uri = holder.get(address[-1])
            if isinstance(uri, str) and uri and "://" not in uri and not Path(uri).is_absolute():
                holder[address[-1]] = str((folder / uri).resolve())


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
