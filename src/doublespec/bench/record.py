"""Real answers as traces: what `simulate` replays."""

from collections.abc import Iterator, Sequence

from doublespec.bench.questions import Item
from doublespec.bench.race import Run
from doublespec.bench.traces import Trace
from doublespec.llm import LLM
from doublespec.sampling import Request, SamplingParams, choose


def record_traces(
    llm: LLM,
    runs: Sequence[Run],
    prompts: Sequence[list[int]],
    items: Sequence[Item],
    params: SamplingParams,
) -> Iterator[Trace]:
    """The answers of plain decoding, each with the positions where the draft would choose the
    target's token after the true text."""
    answers = {run.prompt: run.completion.tokens for run in runs if run.method == "ar"}
    for number, answer in sorted(answers.items()):
        prompt = prompts[number]
        agrees = _agreement(llm, prompt, answer, params) if llm.recipe else [False] * len(answer)
        yield Trace(items[number].id, tuple(prompt), answer, tuple(agrees))


def _agreement(
    llm: LLM, prompt: list[int], answer: tuple[int, ...], params: SamplingParams
) -> list[bool]:
    draft = llm.engine.draft_model()
    text = [*prompt, *answer[:-1]]
    request = Request(params, len(prompt))
    logits = draft.logits(text, len(answer), len(prompt))
    chosen = choose(logits, text, len(prompt), request)
    return [a == b for a, b in zip(chosen, answer, strict=True)]
