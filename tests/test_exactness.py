"""The check of the promise must see a model that breaks it."""

import torch

from doublespec.bench.exactness import OTHER_THREADS, check_methods, check_model
from doublespec.llm import LLM
from doublespec.models.toy import ToyModel
from doublespec.tokens import Tokens


class Careless(ToyModel):
    """Gives a row other bits when it is computed together with many others."""

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> torch.Tensor:
        return super().logits(tokens, last, prompt_length) * (1 + 1e-6 * (last > 7))


def test_an_exact_model_passes() -> None:
    assert all(trial.differs_at is None for trial in check_model(ToyModel(), 12))


def test_a_model_whose_bits_depend_on_the_split_is_found() -> None:
    trials = [trial for trial in check_model(Careless(), 12) if trial.name != OTHER_THREADS]
    assert any(trial.differs_at is not None for trial in trials)


def test_the_bundled_target_passes(bundled: LLM) -> None:
    assert all(trial.differs_at is None for trial in check_model(bundled.target, 5))


def test_methods_are_compared_answer_by_answer(bundled: LLM) -> None:
    comparisons = check_methods(bundled, [[5, 6, 7]], ["lookup", "double-serial"], [0.0, 1.0], 8)
    found = [next(comparisons) for _ in range(8)]
    assert {(c.method, c.params.temperature) for c in found} == {
        (method, heat) for method in ("lookup", "double-serial") for heat in (0.0, 1.0)
    }
    assert {c.params.seed for c in found} == {0, 1}
    assert all(c.differences == 0 and c.tokens > 0 for c in found)
