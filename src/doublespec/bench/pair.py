"""The profile of an LLM's pair: its forwards alone, in turns and beside each other."""

from contextlib import closing, nullcontext

import torch

from doublespec.bench.profile import (
    PairTimes,
    Profile,
    measure_beside,
    measure_branch,
    measure_chained,
    measure_follow,
    measure_forwards,
    measure_lookup,
    measure_pipe,
    profile_row_counts,
    step_seconds,
)
from doublespec.bench.race import fastest_threads
from doublespec.llm import LLM
from doublespec.models.devices import use_threads
from doublespec.sampling import SamplingParams

_STEPS = 120  # of an answer, in which is measured what they take besides forwards


def measure_pair(llm: LLM, context: int) -> Profile:
    """All that a simulation of this machine needs, measured once."""
    llm.engine.prepare(llm.method, wait=True)  # else a draft that is being loaded is at work
    use_threads(llm.settings.threads)
    target, counts = llm.target, profile_row_counts(llm.target.row_counts)
    (alone,) = measure_forwards([target], counts, context)
    chained = measure_chained(target, context)
    fastest = target.fastest()
    use_threads(fastest_threads(fastest))  # as the baseline of benchmarks runs
    (quick,) = measure_forwards([fastest], counts, context)
    quick_chained = measure_chained(fastest, context)
    use_threads(llm.settings.threads)
    model = draft = in_turns = beside = None
    if llm.recipe is not None:
        model = llm.engine.draft_model()
        (draft,) = measure_forwards([model], counts, context)
        after, before = measure_forwards([target, model], counts, context)
        in_turns = PairTimes(after, before)
        threads = llm.settings.draft_threads
        with llm.threads.fixed(llm.threads.usual) if llm.threads else nullcontext():
            beside = measure_beside(target, llm.recipe.load, counts, threads, context)
    return Profile(
        alone,
        quick,
        draft,
        in_turns,
        beside,
        branch_seconds=measure_branch(model, draft) if model and draft else None,
        pipe_seconds=measure_pipe() if llm.recipe else None,
        follow_seconds=measure_follow(target, _forwards_beside(beside)) if beside else None,
        lookup_seconds=measure_lookup(target),
        step_seconds=_step_seconds(llm, context),
        threads=torch.get_num_threads(),
        target_chained_seconds=chained,
        fastest_chained_seconds=quick_chained,
        draft_chained_seconds=measure_chained(model, context) if model else None,
    )


def _step_seconds(llm: LLM, context: int) -> float:
    tokens = max(2, min(_STEPS, llm.target.max_length - 2))
    prompt = [1 + i % 7 for i in range(max(1, min(context, llm.target.max_length - tokens)))]
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    with closing(llm.stream(prompt, params, method="ar")) as stream:
        for _ in stream:
            pass
    return step_seconds(stream.steps[1:])  # the first one reads the prompt


def _forwards_beside(times: PairTimes) -> int:
    """How many forwards a draft makes during one of the target's."""
    return max(1, round(times.target.seconds[1] / times.draft.seconds[1]))
