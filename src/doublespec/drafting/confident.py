"""A draft before the target that goes on for as long as its next token is worth a forward."""

from collections import deque
from collections.abc import Callable, Collection
from statistics import linear_regression, median

from doublespec.drafting.base import Drafter
from doublespec.drafting.odds import EDGES, Odds
from doublespec.models.base import ChainingModel, LanguageModel, Worth, can_chain
from doublespec.oracle import known
from doublespec.ratio import Ratio
from doublespec.sampling import Ranking, Request, rank
from doublespec.tokens import Tokens, common_prefix

_MOST_FORWARDS = 16
_RANKED = 2  # the second choice says how sure the first one is
_KEPT = 0.2  # of first tokens, below which not even the first forward is worth its time
_PROBE_STEPS = 8  # in one of which it is made all the same
_PRIOR_STEPS = 8.0
_PRIOR_RATE = 2.0  # tokens settled in the time of a target forward, before anything was learnt
_UNKNOWN = -1  # the second choice in a chain
_UNTIMED = 2  # forwards of a draft: they read what is new, and find little in caches
_TIMED = 16  # forwards, or chains, by which it is known how long one takes
_FEW_TIMED = 4  # chains, before which it is not
# Of the time of a chain, divided by its forwards, that one of them takes at least (the rest goes to
# the call); and so many times as long as most, and no longer counts one: the machine was stopped.
_LEAST_SHARE, _LONGEST = 0.25, 3.0
_MEMORY = 64.0  # steps after which what was learnt counts half


Clock = Callable[[], float]


class ConfidentDrafter:
    """Proposes what forwards of a draft model settle, as `ModelDrafter` does, but decides for
    itself how many of them: the next one is made if the token it adds is settled more likely than
    the same time spent otherwise would settle one.

    How likely a token is settled it learns from how close its choices were and what became of
    them (`Odds`), and from the text how much is settled in the time of a target forward.
    """

    def __init__(
        self,
        model: LanguageModel,
        helper: Drafter,
        seconds: float,
        odds: Odds | None = None,
        row_cost: float = 0.0,
        clock: Clock | None = None,
        unit: float = 1.0,
        chains: bool = False,
    ) -> None:
        """`seconds` is the time of a draft forward, in forwards of the target; `row_cost` what
        each token that the target is shown adds to one. With a `clock`, of which a forward of the
        target takes a `unit`, that time is measured on and on: in the midst of others a forward
        takes longer, and choices and lookups take as long as that of a small draft. If it
        `chains`, a model that can goes on by itself after the first forward, without retrieval."""
        self._chains = chains
        self._model = model
        self._helper = helper
        self._seconds = seconds
        self._clock, self._unit = clock, unit
        self._timed = deque([seconds], maxlen=_TIMED)
        self._chained: deque[tuple[int, float]] = deque(maxlen=_TIMED)  # forwards, and time of all
        self._row_cost = row_cost
        self._odds = odds or Odds()
        self._text: Tokens = []  # that was drafted after last, as a list that grows,
        self._length = 0  # how long it was then,
        self._rankings: list[Ranking] = []  # the choices made there,
        self._forwards = 0  # the forwards it took,
        self._took = 0.0  # and the time, in forwards of the target
        self._first = Ratio(0.8, 4.0)  # first tokens that hold
        self._steps = 0
        self._settled, self._spent = _PRIOR_STEPS * _PRIOR_RATE, _PRIOR_STEPS

    @property
    def steps(self) -> int:
        """The forwards that a draft takes, as far as can be said beforehand."""
        return max(1, min(round(1.0 / self._seconds), _MOST_FORWARDS))

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        begun = self._clock() if self._clock is not None else 0.0
        self._learn(tokens)
        limit = min(limit, self._model.max_length - len(tokens))
        asked = tokens  # by the same list, sources know a text again
        ahead, most = list(tokens), len(tokens) + limit
        reach = 1.0
        while len(ahead) < most and self._is_worth_a_forward(reach):
            text = ahead.copy()  # which models and indexes may keep
            if self._forwards:
                asked = text
            forwards, rankings = self._go_on(text, asked, most - len(text), reach, request)
            for ranking in rankings:
                ahead.append(ranking.tokens[0])
                reach *= self._odds.of(ranking, 0)
            self._rankings += rankings
            self._forwards += forwards
            if ahead[-1] in request.end_ids:
                break
        self._took = self._seconds * self._forwards
        if self._clock is not None:
            self._took = (self._clock() - begun) / self._unit
        return ahead[len(tokens) :]

    def _is_worth_a_forward(self, reach: float) -> bool:
        if self._forwards:
            return self._forwards < _MOST_FORWARDS and reach > self._least_reach
        self._steps += 1
        return self._first.value > _KEPT or self._steps % _PROBE_STEPS == 0

    @property
    def _least_reach(self) -> float:
        """How likely a further token is the target's where it is just worth its time."""
        return (self._seconds + self._row_cost) * self._settled / self._spent

    def _go_on(
        self, ahead: list[int], asked: Tokens, limit: int, reach: float, request: Request
    ) -> tuple[int, list[Ranking]]:
        """1 to `limit` choices after `ahead`, and in how many forwards: several where a retrieved
        run agrees with one forward, or where the model goes on by itself."""
        chains = self._chains and request.params.is_simple
        begun = self._clock() if self._clock is not None else 0.0
        run: Tokens = []
        if not chains or not self._forwards:
            run = known(self._helper.propose(asked, limit - 1, request), self._model.vocab_size)
        if chains and self._clock is not None:  # in which only the first forward asks for a run
            begun = self._clock()
        rankings: list[Ranking] = []
        if chains and not run and can_chain(self._model):
            rankings = self._chain(self._model, ahead, limit, reach, request)
        forwards, is_chain = len(rankings), bool(rankings)
        if not is_chain:
            rankings, forwards = self._forward(ahead, run, request), 1
        if self._clock is not None:
            self._time(forwards, (self._clock() - begun) / self._unit, is_chain=is_chain)
        return forwards, rankings

    def _time(self, forwards: int, took: float, *, is_chain: bool) -> None:
        """So many forwards took that long. What the call of a chain takes is no matter of how many
        there are: counted among a single one it would make that look dear, and chains short."""
        if is_chain:
            self._chained.append((forwards, took))
            if len(self._chained) >= _FEW_TIMED:
                self._seconds = _in_a_chain(self._chained)
        elif not self._chains and self._forwards + forwards > _UNTIMED:
            self._timed.append(took / forwards)
            self._seconds = median(self._timed)

    def _chain(
        self, model: ChainingModel, ahead: list[int], limit: int, reach: float, request: Request
    ) -> list[Ranking]:
        most = min(limit, _MOST_FORWARDS - self._forwards)
        worth = Worth(EDGES, self._odds.of_first(), self._least_reach / reach)
        told = most, model.vocab_size, request.end_ids, worth, request.params.heat
        chain = model.chain(ahead, *told)
        found = zip(chain.tokens, chain.behind, strict=True)
        return [Ranking((token, _UNKNOWN), (0.0, behind)) for token, behind in found]

    def _forward(self, ahead: list[int], run: Tokens, request: Request) -> list[Ranking]:
        """The model's choices after `ahead`, as far as a retrieved run agrees, and one more; cut
        where the answer ends."""
        text = [*ahead, *run] if run else ahead
        logits = self._model.logits(text, len(run) + 1, request.prompt_length)
        rankings = rank(logits, text, len(ahead), request, _RANKED)
        if not run:
            return rankings
        chosen = [ranking.tokens[0] for ranking in rankings]
        kept = common_prefix(chosen, run) + 1
        ends = (i + 1 for i, token in enumerate(chosen[:kept]) if token in request.end_ids)
        return rankings[: next(ends, kept)]

    def _learn(self, tokens: Tokens) -> None:
        """What the text became after the last draft, in the step that was shown it."""
        stop = self._length
        if tokens is self._text and 0 < stop < len(tokens):
            self._settled += len(tokens) - stop
            self._spent += 1.0 + self._took + self._row_cost * len(self._rankings)
            if self._spent > _MEMORY:
                self._settled, self._spent = self._settled / 2, self._spent / 2
            if self._rankings:
                self._first.learn(self._rankings[0].tokens[0] == tokens[stop], 1)
            for ranking, token in zip(self._rankings, tokens[stop:], strict=False):
                self._odds.learn(ranking, token)
                if token != ranking.tokens[0]:
                    break
        self._text, self._length = tokens, len(tokens)
        self._rankings, self._forwards = [], 0


def _in_a_chain(timed: Collection[tuple[int, float]]) -> float:
    """What another forward adds to the time of a chain, by what chains of some lengths took."""
    each = median(took / forwards for forwards, took in timed)
    lengths = [forwards for forwards, _ in timed]
    times = [min(took, _LONGEST * each * forwards) for forwards, took in timed]
    slope = linear_regression(lengths, times).slope if len({*lengths}) > 1 else 0.0
    return min(max(slope, _LEAST_SHARE * each), each)
