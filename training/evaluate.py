"""Judge a target and draft: held-out loss, chores done exactly, agreement, repeated text.

A greedy answer equals the right one if and only if the model's first choice is right at every
position of the right answer, so chores need one forward each and no decoding.
"""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from doublespec.bench.prompts import DEMO_PROMPTS
from training.chores import FAMILIES, generate
from training.data import ASSISTANT, BOS, EOS, IGNORED, PAD, USER, Batch, encode, pack, read_corpus

TEMPERATURE = 0.8
NOISE_SEED = 7


@dataclass(frozen=True, slots=True)
class Score:
    """Counts over the answers of one family, and the losses' sums."""

    answers: int
    exact: int
    draft_exact: int
    tokens: int
    loss: float
    draft_loss: float
    agree_greedy: int
    agree_sampled: int


@dataclass(frozen=True, slots=True)
class Demo:
    """One demo prompt's greedy answer."""

    name: str
    right: bool
    tokens: int
    answer: str


def main(
    target: Annotated[Path, typer.Option(help="Hugging Face folder of the target")],
    draft: Annotated[Path, typer.Option(help="Hugging Face folder of the draft")],
    corpus: Annotated[Path | None, typer.Option(help="folder of the text corpus")] = None,
    instances: Annotated[int, typer.Option(help="unseen chores of each family")] = 50,
    first_seed: Annotated[int, typer.Option(help="seed of the first one")] = 1_000_000_000,
    threads: int = 2,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON only")] = False,
    show: Annotated[bool, typer.Option(help="print the demo's answers")] = False,
) -> None:
    """Print the rates as a table, and as JSON on the last line."""
    torch.set_num_threads(threads)
    pair = _load(target), _load(draft)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    scores = {
        family: score(pair, [_chore(tokenizer, first_seed + i, family) for i in range(instances)])
        for family in FAMILIES
    }
    scores["(all chores)"] = _sum(list(scores.values()))
    if corpus:
        held_out = [encode(tokenizer, turns) for turns in read_corpus(corpus, tokenizer)[1]]
        scores["(corpus)"] = score(pair, [row for row in held_out if len(row[0]) <= 512])
    demos = [_demo(pair[0], tokenizer, prompt.name) for prompt in DEMO_PROMPTS]
    report = {
        "families": {name: _rates(found) for name, found in scores.items()},
        "demo_right": sum(demo.right for demo in demos),
        "demo": [asdict(demo) for demo in demos],
        "repeated_8grams": repeated(
            [tokenizer.encode(demo.answer, add_special_tokens=False).ids for demo in demos]
        ),
    }
    if not as_json:
        _print(report, show)
    typer.echo(json.dumps(report))


def score(pair: tuple[Any, Any], rows: list[tuple[list[int], list[int]]]) -> Score:
    """Judge both models on conversations, one forward of each for every 16 rows."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    parts = [rows[i : i + 16] for i in range(0, len(rows), 16)]
    batches = [pack(part, max(len(tokens) for tokens, _ in part)) for part in parts]
    return _sum([_score_batch(pair, batch) for batch in batches])


def repeated(answers: list[list[int]]) -> float:
    """The share of 8-grams that occurred before in the same answer."""
    again, count = 0, 0
    for tokens in answers:
        grams = [tuple(tokens[i : i + 8]) for i in range(len(tokens) - 7)]
        again += len(grams) - len(set(grams))
        count += len(grams)
    return again / max(1, count)


@torch.inference_mode()
def decode(model: Any, tokenizer: Tokenizer, prompt: str, limit: int = 320) -> str:
    """The greedy answer to a prompt."""
    tokens = [BOS, USER, *tokenizer.encode(prompt, add_special_tokens=False).ids, ASSISTANT]
    found = model.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return str(tokenizer.decode(found[0, len(tokens) :].tolist()))


@torch.inference_mode()
def _score_batch(pair: tuple[Any, Any], batch: Batch) -> Score:
    at = batch.labels != IGNORED  # (B, T)
    labels = batch.labels[at]
    target, draft = (model(batch.tokens).logits[at].float() for model in pair)  # (N, V)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = -torch.empty_like(target).exponential_(generator=generator).log()
    sampled = [(logits / TEMPERATURE + noise).argmax(-1) for logits in (target, draft)]
    return Score(
        answers=len(batch.tokens),
        exact=_exact(target.argmax(-1), labels, at),
        draft_exact=_exact(draft.argmax(-1), labels, at),
        tokens=len(labels),
        loss=functional.cross_entropy(target, labels, reduction="sum").item(),
        draft_loss=functional.cross_entropy(draft, labels, reduction="sum").item(),
        agree_greedy=int((target.argmax(-1) == draft.argmax(-1)).sum()),
        agree_sampled=int((sampled[0] == sampled[1]).sum()),
    )


def _exact(first: Tensor, labels: Tensor, at: Tensor) -> int:
    wrong = torch.zeros(at.shape, dtype=torch.bool)
    wrong[at] = first != labels
    return int((~wrong.any(-1)).sum())


def _sum(scores: list[Score]) -> Score:
    totals: dict[str, float] = defaultdict(float)
    for found in scores:
        for name, value in asdict(found).items():
            totals[name] += value
    return Score(**totals)  # type: ignore[arg-type]


def _rates(found: Score) -> dict[str, float]:
    return {
        "answers": found.answers,
        "exact": found.exact / found.answers,
        "draft_exact": found.draft_exact / found.answers,
        "tokens_per_answer": found.tokens / found.answers,
        "loss": found.loss / found.tokens,
        "draft_loss": found.draft_loss / found.tokens,
        "agree_greedy": found.agree_greedy / found.tokens,
        "agree_sampled": found.agree_sampled / found.tokens,
    }


def _demo(model: Any, tokenizer: Tokenizer, name: str) -> Demo:
    prompt = next(prompt for prompt in DEMO_PROMPTS if prompt.name == name)
    answer = decode(model, tokenizer, prompt.text)
    count = len(tokenizer.encode(answer, add_special_tokens=False).ids)
    return Demo(name, prompt.check(answer), count, answer)


def _chore(tokenizer: Tokenizer, seed: int, family: str) -> tuple[list[int], list[int]]:
    chore = generate(seed, family, held_out=True)
    return encode(tokenizer, [(chore.prompt, chore.answer)])


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def _print(report: dict[str, Any], show: bool) -> None:
    console = Console(width=110)
    table = Table(
        "family", "exact", "draft exact", "tokens", "loss", "draft loss", "agree", "at 0.8"
    )
    for name, found in report["families"].items():
        table.add_row(
            name,
            f"{found['exact']:.0%}",
            f"{found['draft_exact']:.0%}",
            f"{found['tokens_per_answer']:.0f}",
            f"{found['loss']:.3f}",
            f"{found['draft_loss']:.3f}",
            f"{found['agree_greedy']:.3f}",
            f"{found['agree_sampled']:.3f}",
        )
    console.print(table)
    for demo in report["demo"]:
        console.print(
            f"{demo['name']}: {'right' if demo['right'] else 'WRONG'}, {demo['tokens']} tokens"
        )
        if show or not demo["right"]:
            console.print(demo["answer"], markup=False, style="dim")
    console.print(f"demo right {report['demo_right']} of {len(report['demo'])}")
    console.print(f"repeated 8-grams {report['repeated_8grams']:.3f}")


if __name__ == "__main__":
    typer.run(main)
