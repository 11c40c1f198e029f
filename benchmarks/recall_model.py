"""A small GPT-NeoX that is trained in minutes to recall: a second kind of model, in which few heads do most of the work.

Its rows are facts, and a question about one of them, `The fox is green. The owl is pink.` and `The owl is`, in ARC format with
eight colours as choices. Every row has facts of its own, so the answer cannot be known without looking back at them.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

ANIMALS = ("fox", "owl", "dog", "cat", "hen", "cow", "pig", "bee", "ant", "bat", "elk", "emu")
COLOURS = ("red", "green", "blue", "pink", "black", "white", "brown", "gold")
FACTS = 6
TEMPLATE = "{facts}\n{question}"
LABELS = "ABCDEFGH"


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows in ARC format."""
    chance, made = random.Random(seed), []
    for _ in range(count):
        facts = [(animal, chance.choice(COLOURS)) for animal in chance.sample(ANIMALS, FACTS)]
        asked, colour = chance.choice(facts)
        told = " ".join(f"The {animal} is {its}." for animal, its in facts)
        choices = chance.sample(COLOURS, len(COLOURS))
        made.append(
            {
                "facts": told,
                "question": f"The {asked} is",
                "choices": {"text": choices, "label": list(LABELS)},
                "answerKey": LABELS[choices.index(colour)],
            }
        )
    return made


def lesson(chance: random.Random) -> str:
    """What the model is trained on: facts, then all of them again in another order, which is to be known from the first."""
    animals = chance.sample(ANIMALS, FACTS)
    colours = {animal: chance.choice(COLOURS) for animal in animals}
    told, again = (
        " ".join(f"The {animal} is {colours[animal]}." for animal in order)
        for order in (animals, chance.sample(animals, FACTS))
    )
    return TEMPLATE.format(facts=told, question=again)


def tokenizer_of(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word is one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def batches(tokenizer: PreTrainedTokenizerFast, size: int) -> Iterator[torch.Tensor]:
    """Lessons for ever, [size, tokens]; all have the same number of tokens, as every word is one."""
    chance = random.Random(1)
    while True:
        yield torch.tensor([tokenizer(lesson(chance))["input_ids"] for _ in range(size)])


def train(folder: Path, data: Path, steps: int, count: int) -> None:
    """Write rows to `data`, and the model that was trained on others like them to `folder`."""
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(count, 0)))
    chance = random.Random(2)
    tokenizer = tokenizer_of([lesson(chance) for _ in range(500)])
    colours = torch.tensor([tokenizer(f" {colour}")["input_ids"][0] for colour in COLOURS])
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=512,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXForCausalLM(config).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    for step, ids in zip(range(steps), batches(tokenizer, 64), strict=False):
        asked = torch.isin(ids, colours)
        asked[:, : ids.shape[1] // 2] = False  # the facts are random
        loss = model(input_ids=ids, labels=ids.where(asked, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
