"""A draft that goes ahead of the target: its own choices, and corrections in advance.

The target will depart from the draft somewhere. Where the draft's choice was close, or retrieved
text disagreed with it, it also goes on from the other token, in the same forwards: when the
target's correction is among these forks, the next step has something to judge at once (after
"speculative speculative decoding", arXiv 2603.03251, and SpecBranch, arXiv 2506.01979; here with
retrieval, and exact by construction). Knows no clock, no pipe, and not when it is asked to work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor

from doublespec.config import ForkSettings
from doublespec.drafting.base import Drafter
from doublespec.drafting.odds import Odds
from doublespec.models.base import Branch, BranchingModel, LanguageModel, can_branch
from doublespec.oracle import known
from doublespec.sampling import Ranking, Request, choose, rank
from doublespec.tokens import common_prefix

_RANKED = 3  # choices of the draft that are looked at, the first included
_LEAST = 0.02  # chance of being right below which a fork is left alone


@dataclass(slots=True)
class Fork:
    """A path that leaves the draft's own after `place` tokens. `rankings[i]` is where its token
    i + 1 was chosen, `chance` how likely the target goes all of this way."""

    place: int
    tokens: list[int]
    rankings: list[Ranking]
    chance: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What one forward has added: `tokens` to the draft's own path, at position `added_at`, and one
    to each of so many forks (`branches`). `rows` were computed."""

    added_at: int
    tokens: tuple[int, ...]
    rows: int
    branches: int


class DraftAhead:
    """Drafts after a text, forward by forward, for as long as something is of use."""

    def __init__(
        self, model: LanguageModel, helper: Drafter, forks: ForkSettings, odds: Odds | None = None
    ) -> None:
        self._model = model
        self._branching: BranchingModel | None = None
        if forks.forks and can_branch(model):
            self._branching = model
        self._helper = helper
        self._settings = forks
        self._odds = odds or Odds()
        self._request: Request | None = None
        self._text: list[int] = []
        self._path: list[int] = []  # the draft's own choices after the text,
        self._rankings: list[Ranking] = []  # where each was made,
        self._reach: list[float] = [1.0]  # and how likely the target follows so many of them
        self._forks: list[Fork] = []
        self._limit = 0

    @property
    def length(self) -> int:
        """The length of the text."""
        return len(self._text)

    @property
    def path(self) -> tuple[int, ...]:
        """The draft's own choices after the text."""
        return tuple(self._path)

    @property
    def forks(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """What it has gone on with from other tokens: after how many of its own, and which."""
        return tuple((fork.place, tuple(fork.tokens)) for fork in self._forks if fork.rankings)

    def begin(self, tokens: list[int], limit: int, request: Request) -> None:
        """Takes another text, after which at most `limit` tokens are of use."""
        self._request = request
        self._text, self._limit = tokens, limit
        self._take_path([])

    def settle(self, new: Sequence[int], limit: int) -> None:
        """The text has grown by `new`; what was drafted and still holds is kept."""
        new = list(new)
        self._learn(new)
        self._text += new
        self._limit = limit
        if self._path[: len(new)] == new:
            self._move_on(len(new))
        else:
            self._depart(new)

    def has_work(self) -> bool:
        return self._goes_on() or any(map(self._grows, self._forks))

    def forward(self) -> Progress:
        """Computes one forward of the model, and says what it has added."""
        assert self._request is not None
        ahead = [*self._text, *self._path]
        run = self._retrieved(ahead, self._request)
        forks = self._chosen_forks(self._settings.rows - len(run))
        rows = 1 + len(run) + sum(len(fork.tokens) for fork in forks)
        text = [*ahead, *run] if run else ahead
        logits = self._compute(text, len(run) + 1, forks, self._request)
        added = self._extend(text, run, logits, self._request) if self._goes_on() else []
        return Progress(len(ahead), tuple(added), rows, len(forks))

    # -- the draft's own path --------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Whether the path should grow: it is short, has not ended, and the model has room."""
        return self._may_follow(len(self._path), self._path[-1:])

    def _may_follow(self, length: int, last: list[int]) -> bool:
        """Whether a path of that length, with that last token, may have another one."""
        if self._request is None or length >= self._limit:
            return False
        ended = bool(last) and last[0] in self._request.end_ids
        return not ended and len(self._text) + length < self._model.max_length

    def _retrieved(self, ahead: list[int], request: Request) -> list[int]:
        """A retrieved run to be judged by the next forward."""
        if not self._goes_on():
            return []
        room = min(self._limit - len(self._path), self._model.max_length - len(ahead)) - 1
        return list(known(self._helper.propose(ahead, room, request), self._model.vocab_size))

    def _compute(self, text: list[int], last: int, forks: list[Fork], request: Request) -> Tensor:
        """The model's logits for the last places of `text`; each fork grows by one token."""
        if self._branching is None or not forks:
            return self._model.logits(text, last, request.prompt_length)
        base = len(self._text)
        branches = [Branch(base + fork.place, tuple(fork.tokens)) for fork in forks]
        logits, tips = self._branching.branch_logits(text, last, branches, request.prompt_length)
        for i, fork in enumerate(forks):
            before = [*text[: base + fork.place], *fork.tokens]
            choice = rank(tips[i : i + 1], before, len(before), request, _RANKED)[0]
            fork.tokens.append(choice.tokens[0])
            fork.rankings.append(choice)
            fork.chance *= self._odds.of(choice, 0)
        return logits

    def _extend(
        self, text: list[int], run: list[int], logits: Tensor, request: Request
    ) -> list[int]:
        """Takes what the model chose after the path, as far as `run` agrees with it, and one token
        more; where they disagree the token of `run` becomes a fork. `text` ends with the run."""
        start, place = len(text) - len(run), len(self._path)
        chosen = choose(logits, text, start, request)
        kept = common_prefix(chosen, run) + 1
        ends = (i + 1 for i, token in enumerate(chosen[:kept]) if token in request.end_ids)
        kept = next(ends, kept)
        for ranking in self._ranked(chosen[:kept], text, start, logits, request):
            self._append(ranking)
        if self._branching and run[kept - 1 : kept] not in ([], chosen[kept - 1 : kept]):
            self._retrieved_fork(place + kept - 1, run[kept - 1])
        return chosen[:kept]

    def _ranked(
        self, chosen: list[int], text: list[int], start: int, logits: Tensor, request: Request
    ) -> list[Ranking]:
        """What was chosen, with what came close to it if forks may go there."""
        if self._branching is None:
            return [Ranking((token,), (0.0,)) for token in chosen]
        return rank(logits[: len(chosen)], text, start, request, _RANKED)

    def _append(self, ranking: Ranking) -> None:
        """The path's next token; the other choices at its place become forks."""
        place = len(self._path)
        self._path.append(ranking.tokens[0])
        self._rankings.append(ranking)
        reach = self._reach[place]
        self._reach.append(reach * self._odds.of(ranking, 0))
        for order, other in enumerate(ranking.tokens[1:], start=1):
            chance = reach * self._odds.of(ranking, order)
            if chance >= _LEAST:
                self._forks.append(Fork(place, [other], [], chance))

    def _take_path(self, rankings: list[Ranking]) -> None:
        """Begins again with the path of these choices."""
        self._path, self._rankings, self._reach, self._forks = [], [], [1.0], []
        for ranking in rankings:
            self._append(ranking)

    # -- forks -----------------------------------------------------------------------------------

    def _grows(self, fork: Fork) -> bool:
        length = fork.place + len(fork.tokens)
        likely = fork.chance >= _LEAST and len(fork.tokens) <= self._settings.rows
        return likely and self._may_follow(length, fork.tokens[-1:])

    def _chosen_forks(self, rows: int) -> list[Fork]:
        """The forks to go on with now: the likeliest, in so many rows."""
        chosen: list[Fork] = []
        for fork in sorted(self._forks, key=attrgetter("chance"), reverse=True):
            if len(chosen) == self._settings.forks or fork.chance < _LEAST:
                break
            if len(fork.tokens) <= rows and self._grows(fork):
                rows -= len(fork.tokens)
                chosen.append(fork)
        return chosen

    def _retrieved_fork(self, place: int, token: int) -> None:
        """Retrieved text says otherwise there: as likely as the draft's second choice, at least."""
        chance = self._reach[place] * self._odds.of(self._rankings[place], 1)
        for fork in self._forks:
            if fork.place == place and fork.tokens[0] == token:
                fork.chance = max(fork.chance, chance)
                return
        self._forks.append(Fork(place, [token], [], chance))

    def _move_on(self, count: int) -> None:
        """The target has followed so many tokens of the path."""
        scale = self._reach[count]
        self._path, self._rankings = self._path[count:], self._rankings[count:]
        self._reach = [reach / scale for reach in self._reach[count:]]
        self._forks = [fork for fork in self._forks if fork.place >= count]
        for fork in self._forks:
            fork.place -= count
            fork.chance /= scale

    def _depart(self, new: list[int]) -> None:
        """The target has gone another way: along a fork, it may be."""
        for fork in self._forks:
            tokens = [*self._path[: fork.place], *fork.tokens]
            if tokens[: len(new)] == new and len(new) > fork.place:
                return self._take_path(fork.rankings[len(new) - fork.place - 1 :])
        return self._take_path([])

    def _learn(self, new: list[int]) -> None:
        """What the target chose where the draft had chosen, up to its first correction."""
        for token, ranking in zip(new, self._rankings, strict=False):
            self._odds.learn(ranking, token)
            if token != ranking.tokens[0]:
                return
