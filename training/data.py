"""Batches of dialogues: chores by seed, and dialogues of a text corpus, in rows of like length.

A row is one conversation as the chat template writes it; only the assistant's tokens are learned.
"""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.chores import generate

LENGTHS = (64, 96, 128, 160, 192, 256, 320, 384, 512)  # each divides 7680
IGNORED = -100
BOS, EOS, PAD, USER, ASSISTANT = 0, 1, 2, 4, 5

Turns = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs and the tokens that follow them, both (B, T); what is not learned is IGNORED."""

    tokens: Tensor
    labels: Tensor


def batches(
    tokenizer: Tokenizer,
    corpus: list[Turns],
    share: float,
    repeats: float,
    first_seed: int,
    batch_tokens: int,
) -> Iterator[Batch]:
    """Endless training batches; `share` of the conversations come from the corpus, and `repeats`
    of all rows are no conversations but random tokens twice, which teach to copy."""
    waiting: dict[int, list[tuple[list[int], list[int]]]] = defaultdict(list)
    rng = random.Random(first_seed)
    seed = first_seed
    while True:
        if rng.random() < repeats:
            tokens, labels = repeat(rng, tokenizer.get_vocab_size())
        else:
            turns, seed = (rng.choice(corpus), seed) if rng.random() < share else _chores(rng, seed)
            tokens, labels = encode(tokenizer, turns)
        length = next((length for length in LENGTHS if len(tokens) <= length), None)
        if length is None:
            continue
        waiting[length].append((tokens, labels))
        if len(waiting[length]) * length >= batch_tokens:
            yield pack(waiting.pop(length), length)


def encode(tokenizer: Tokenizer, turns: Turns) -> tuple[list[int], list[int]]:
    """Inputs and next tokens of a conversation."""
    tokens, learned = [BOS], [False]
    for user, assistant in turns:
        asked = [USER, *tokenizer.encode(user, add_special_tokens=False).ids, ASSISTANT]
        answered = [*tokenizer.encode(assistant, add_special_tokens=False).ids, EOS]
        tokens += asked + answered
        learned += [False] * len(asked) + [True] * len(answered)
    labels = [token if take else IGNORED for token, take in zip(tokens, learned, strict=True)]
    return tokens[:-1], labels[1:]


def repeat(rng: random.Random, vocab_size: int) -> tuple[list[int], list[int]]:
    """Inputs and next tokens of a run of random tokens written twice; the second is learned."""
    count = rng.randint(6, 31)
    run = [rng.randrange(ASSISTANT + 1, vocab_size) for _ in range(count)]
    return [BOS, *run, *run[:-1]], [IGNORED] * (count + 1) + run[1:]


def pack(rows: list[tuple[list[int], list[int]]], length: int) -> Batch:
    """Rows padded to one length."""
    tokens = [row + [PAD] * (length - len(row)) for row, _ in rows]
    labels = [row + [IGNORED] * (length - len(row)) for _, row in rows]
    return Batch(torch.tensor(tokens), torch.tensor(labels))


def read_corpus(folder: Path, tokenizer: Tokenizer) -> tuple[list[Turns], list[Turns]]:
    """Training and held-out conversations of `instruct` and `math`, short enough for one row."""
    found: list[Turns] = []
    for name in ("instruct", "math"):
        with gzip.open(folder / f"{name}.jsonl.gz", "rt") as lines:
            found += [turns for line in lines if (turns := _turns(json.loads(line)))]
    return found[200:], found[:200]


def _turns(document: dict[str, object]) -> Turns:
    if len(str(document["text"])) > 1600 or "Toolformer" in str(document["source"]):
        return []
    messages = document.get("messages")
    if isinstance(messages, list):
        texts = [str(message["content"]) for message in messages]
        return list(zip(texts[::2], texts[1::2], strict=False))
    if not document.get("output"):
        return []
    asked = f"{document['instruction']}\n\n{document.get('input') or ''}".strip()
    return [(asked, str(document["output"]))]


def _chores(rng: random.Random, seed: int) -> tuple[Turns, int]:
    count = 2 if rng.random() < 0.12 else 1
    chores = [generate(seed + i) for i in range(count)]
    return [(chore.prompt, chore.answer) for chore in chores], seed + count
