"""The families of checkpoints that can be base models, and reading their config.json."""

from hmi_api.errors import InvalidInput
from hmi_runtime.library_errors import invalid_if_damaged
from hmi_runtime.models.architecture import ACTIVATIONS, Architecture, EncoderConfig, Family, RawConfig
from hmi_runtime.models.bert import BERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from hmi_runtime.models.modernbert import MODERNBERT

MAX_LAYERS = 512
MAX_WIDTH = 1 << 16

FAMILIES: dict[str, Family] = {
    family.name: family for family in (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, MODERNBERT)
}


def architecture_of(config: EncoderConfig) -> Architecture:
    """Return the architecture of an encoder of these sizes."""
    return FAMILIES[config.family].architecture(config)


def family_of(config: RawConfig) -> Family:
    """Return the family of a config.json; ``InvalidInput`` BaseModelUnsupported when there is none."""
    model_type = str(config.get("model_type", ""))
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise InvalidInput(
            "BaseModelUnsupported",
            f"model_type {model_type!r} is not served yet; choose a base model of one of: {known}.",
        )
    position = config.get("position_embedding_type", "absolute")
    if position != "absolute" and "position" in family.embeddings:
        raise InvalidInput(
            "BaseModelUnsupported",
            f"position_embedding_type {position!r} is not served; choose one with absolute positions.",
        )
    return family


def encoder_config(config: RawConfig, *, cls_id: int, sep_id: int, pad_id: int) -> EncoderConfig:
    """Read the canonical sizes from a checkpoint's config.json and its tokenizer's special ids.

    Raises ``InvalidInput`` BaseModelUnsupported for an unknown family or sizes that are not supported.
    """
    family = family_of(config)
    with invalid_if_damaged(
        "BaseModelUnsupported", "config.json of the base model", "give the checkpoint again."
    ):
        found = _sizes(family, config, cls_id=cls_id, sep_id=sep_id, pad_id=pad_id)
    _check_sizes(found)
    return found


def _sizes(family: Family, config: RawConfig, *, cls_id: int, sep_id: int, pad_id: int) -> EncoderConfig:
    keys = family.keys
    offset = pad_id + 1 if family.counts_from_pad else 0
    return EncoderConfig(
        family=family.name,
        layers=int(config[keys["layers"]]),
        width=int(config[keys["width"]]),
        heads=int(config[keys["heads"]]),
        ffn_width=int(config[keys["ffn_width"]]),
        vocab_size=int(config["vocab_size"]),
        positions=int(config["max_position_embeddings"]) - offset,
        segments=int(config.get("type_vocab_size", 0)) if "segment" in family.embeddings else 0,
        norm_eps=float(config.get(keys.get("norm_eps", "layer_norm_eps"), family.norm_eps)),
        activation=str(config.get(keys["activation"], "gelu")),
        pad_id=pad_id,
        cls_id=cls_id,
        sep_id=sep_id,
        **family.further_sizes(config),
    )


def _check_sizes(config: EncoderConfig) -> None:
    """Raise ``InvalidInput`` BaseModelUnsupported for sizes that no encoder has."""
    sizes = {
        "layers": (config.layers, MAX_LAYERS),
        "hidden size": (config.width, MAX_WIDTH),
        "feed-forward size": (config.ffn_width, 16 * MAX_WIDTH),
        "vocabulary": (config.vocab_size, 1 << 24),
        "positions": (config.positions, 1 << 24),
        "attention heads": (config.heads, config.width),
    }
    for name, (value, most) in sizes.items():
        if not 1 <= value <= most:
            raise InvalidInput(
                "BaseModelUnsupported",
                f"config.json of the base model has {value} {name}; 1 to {most} are supported.",
            )
    if config.width % config.heads:
        raise InvalidInput(
            "BaseModelUnsupported",
            f"config.json of the base model has a hidden size of {config.width}, which {config.heads} "
            "attention heads do not divide.",
        )
    if config.activation not in ACTIVATIONS:
        raise InvalidInput(
            "BaseModelUnsupported",
            f"activation {config.activation!r} is not served; choose a base model with one of: "
            f"{', '.join(sorted(ACTIVATIONS))}.",
        )
