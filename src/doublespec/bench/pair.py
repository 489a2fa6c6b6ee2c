"""The profile of an LLM's pair: its forwards alone, in turns and beside each other."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from doublespec.bench.profile import (
    ForwardTimes,
    PairTimes,
    Profile,
    measure_beside,
    measure_branch,
    measure_follow,
    measure_forwards,
    measure_lookup,
    measure_pipe,
    measure_step,
    profile_row_counts,
)
from doublespec.bench.race import fastest_threads
from doublespec.llm import LLM
from doublespec.models.base import LanguageModel
from doublespec.models.devices import use_threads


def measure_pair(llm: LLM, context: int) -> Profile:
    """All that a simulation of this machine needs, measured once."""
    llm.engine.prepare(llm.method, wait=True)  # else a draft that is being loaded is at work
    use_threads(llm.settings.threads)
    target, counts = llm.target, profile_row_counts(llm.target.row_counts)
    (alone,) = measure_forwards([target], counts, context)
    fastest = _measure_fastest(target.fastest(), counts, context)
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
        fastest,
        draft,
        in_turns,
        beside,
        branch_seconds=measure_branch(model, draft) if model and draft else None,
        pipe_seconds=measure_pipe() if llm.recipe else None,
        follow_seconds=measure_follow(target, _forwards_beside(beside)) if beside else None,
        lookup_seconds=measure_lookup(target),
        step_seconds=measure_step(),
        threads=torch.get_num_threads(),
    )


def _measure_fastest(model: LanguageModel, counts: Sequence[int], context: int) -> ForwardTimes:
    """As the baseline of benchmarks runs."""
    use_threads(fastest_threads(model))
    return measure_forwards([model], counts, context)[0]


def _forwards_beside(times: PairTimes) -> int:
    """How many forwards a draft makes during one of the target's."""
    return max(1, round(times.target.seconds[1] / times.draft.seconds[1]))
