"""One decoder divided among ranks: tensor parallelism (arXiv 1909.08053, section 3).

Each rank has an equal share of every layer's heads and of its MLP, and a decoder of these sizes:

    query, key, value; gate, up   the outputs of a rank's heads, or of its part of the MLP
    output, down                  the inputs that these are; the products are summed over ranks
    embedding, norms              whole on each rank
    the vocabulary                on rank 0 only, which is the one that chooses tokens: so what is
                                  as large as the vocabulary never leaves a device

Two sums of (rows, hidden size) a layer are all that crosses between devices. Rank 0 says which text
is asked for; the followers, under the same full-sequence contract, do what it does.
"""

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from doublespec.errors import ModelError
from doublespec.models.decoder import Decoder, canonical_shapes
from doublespec.models.devices import available_memory, gigabytes, prepare_device
from doublespec.models.kernels import KernelProbe
from doublespec.models.layers import (
    Linear,
    Norm,
    Progress,
    Weights,
    is_packed,
    read_weights,
    with_torch,
)
from doublespec.models.memory import Plan
from doublespec.models.quantize import find_products
from doublespec.models.ranks import Group, Member, Team, check_not_launched
from doublespec.models.shapes import FASTEST, STRICT, Shapes
from doublespec.models.sizes import MODEL_TYPES, DecoderConfig
from doublespec.models.weights import WHOLE, Cut, Placement, Size, Source
from doublespec.tokens import Tokens, common_prefix

_BY_OUTPUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_BY_INPUT = ("o_proj", "down_proj")


class ParallelDecoder:
    """Rank 0 of a divided decoder: a language model under the full-sequence contract."""

    def __init__(self, decoder: Decoder, team: Team, numbers: "_Numbers") -> None:
        self._decoder = decoder
        self._team = team
        self._numbers = numbers
        self._number = numbers.take()
        self._told: list[int] = []  # the text that the followers have
        team.tell(_Begin(self._number, decoder.shapes, numbers.given_back()))
        weakref.finalize(self, numbers.give_back, self._number)

    @classmethod
    def load(
        cls,
        source: Source,
        devices: Sequence[torch.device],
        dtype: torch.dtype,
        *,
        threads: int,
        max_length: int | None = None,
        quantize: str | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Reads weights onto devices, a rank for each, in canonical shapes. Raises
        ModelError and ConfigError."""
        check_not_launched()
        config = _divisible_config(source, len(devices))
        plan = _Plan(source, config, dtype, quantize, max_length, len(devices))
        plan.check_memory(0, devices[0])
        team = Team(plan.follow, devices, threads)
        try:
            part = plan.read(0, devices[0], progress)
            # Devices that are not alike may find different shapes: then only the safest hold.
            shapes = part.shapes if {part.shapes} == {*team.hear()} else STRICT
            return cls(part.decoder(team.meet(), shapes), team, _Numbers())
        except BaseException:
            team.close()
            raise

    def fastest(self) -> Self:
        """The same weights in the fastest shapes: the baseline of benchmarks."""
        return self.with_shapes(FASTEST)

    def with_shapes(self, shapes: Shapes) -> Self:
        """The same weights with a cache of their own, computing in other shapes."""
        return type(self)(self._decoder.with_shapes(shapes), self._team, self._numbers)

    @property
    def vocab_size(self) -> int:
        return self._decoder.vocab_size

    @property
    def max_length(self) -> int:
        return self._decoder.max_length

    @property
    def row_counts(self) -> tuple[int, ...]:
        """The row counts that blocks of an answer come in."""
        return self._decoder.row_counts

    @property
    def shapes(self) -> Shapes:
        return self._decoder.shapes

    @property
    def device(self) -> torch.device:
        return self._decoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self._decoder.dtype

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        """See `models/base.py`. Raises ModelError if a rank has ended."""
        text = list(tokens)
        kept = common_prefix(self._told, text)
        call = _Call(self._number, kept, tuple(text[kept:]), last, prompt_length)
        with self._team.leading(call):
            self._told = text
            return self._decoder.logits(text, last, prompt_length)

    def close(self) -> None:
        """Ends the other ranks; may be called again. Nothing can be computed afterwards."""
        self._team.close()


class _Numbers:
    """The numbers of a team's decoders, each of which has a cache on every rank."""

    def __init__(self) -> None:
        self._next = 0
        self._back: deque[int] = deque()

    def take(self) -> int:
        self._next += 1
        return self._next

    def give_back(self, number: int) -> None:
        self._back.append(number)

    def given_back(self) -> tuple[int, ...]:
        """Those that came back since this was last asked; some may be coming back meanwhile, as
        decoders are forgotten whenever Python does so."""
        return tuple(self._back.popleft() for _ in range(len(self._back)))


# -- what rank 0 tells -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Begin:
    """A decoder of that number, which others are no longer needed."""

    number: int
    shapes: Shapes
    done: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Call:
    """The decoder's text is now the first `kept` tokens of what it was, then `new` ones."""

    number: int
    kept: int
    new: tuple[int, ...]
    last: int
    prompt_length: int


# -- what each rank does ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What all ranks know before they begin."""

    source: Source
    config: DecoderConfig
    dtype: torch.dtype
    quantize: str | None
    max_length: int | None
    count: int

    def follow(self, member: Member) -> None:
        """A follower's job: the same calls as rank 0, for as long as there is one."""
        rank, device = member.place.rank, member.place.device
        if device.type != "cpu":  # whose memory rank 0 has checked for all
            self.check_memory(rank, device)
        part = self.read(rank, device)
        member.send(part.shapes)
        group = member.meet()
        decoders: dict[int, tuple[Decoder, list[int]]] = {}
        while True:
            message = member.receive()
            if isinstance(message, _Begin):
                for number in message.done:
                    del decoders[number]
                decoders[message.number] = part.decoder(group, message.shapes), []
            else:
                decoder, text = decoders[message.number]
                text[message.kept :] = message.new
                decoder.logits(text, message.last, message.prompt_length)

    def read(self, rank: int, device: torch.device, progress: Progress | None = None) -> "_Part":
        """Reads a rank's part."""
        prepare_device(device)
        config = self.config.divided(self.count)
        share = Share(self.source, rank, self.count)
        product = find_products(self.quantize, device)
        make = with_torch(product, has_vocabulary=rank == 0)
        weights = read_weights(share, config, device, self.dtype, make, progress)
        length = min(config.max_length, self.max_length or config.max_length)
        probe = KernelProbe(config, device, self.dtype, product, weights.vocabulary)
        shapes = canonical_shapes(probe, length)
        return _Part(config, weights, shapes, length)

    def check_memory(self, rank: int, device: torch.device) -> None:
        """Raises ModelError if a rank's part does not fit its device; on the CPU, if all do not."""
        ranks = range(self.count) if device.type == "cpu" else [rank]
        config = self.config.divided(self.count)
        plan = Plan(config, device, self.dtype, self.quantize, self.max_length)
        needed, available = (
            sum(needed_bytes(plan, each) for each in ranks),
            available_memory(device),
        )
        if needed > available:
            whose = f"{self.count} ranks need" if device.type == "cpu" else f"rank {rank} needs"
            advice = "" if self.quantize else "--quantize int8, "
            raise ModelError(
                f"{whose} {gigabytes(needed)} for {self.source.name} with its cache, and {device} "
                f"has {gigabytes(available)} left; choose {advice}more target devices or a smaller "
                "model"
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """All that a rank has read, and the shapes that its device found."""

    config: DecoderConfig
    weights: Weights[Linear, Norm]
    shapes: Shapes
    max_length: int

    def decoder(self, group: Group, shapes: Shapes) -> Decoder:
        """With an empty cache."""
        weights = _summed(self.weights, group)
        return Decoder(self.config, weights, shapes, self.max_length)


@dataclass(frozen=True, slots=True)
class Share:
    """Weights as a rank reads them: of what is divided, its part."""

    source: Source
    rank: int
    count: int

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def model_type(self) -> str:
        return self.source.model_type

    @property
    def vocab_size(self) -> int:
        return self.source.vocab_size

    @property
    def config(self) -> DecoderConfig | None:
        return self.source.config

    def has(self, name: str) -> bool:
        """A bias that comes after a sum is added by rank 0 only."""
        is_own = self.rank == 0 or not (name.endswith(".bias") and _module(name) in _BY_INPUT)
        return is_own and self.source.has(name)

    def read(self, name: str, shape: Size, where: Placement, cut: Cut = WHOLE) -> Tensor:
        assert cut == WHOLE  # a part is not divided again
        if _module(name) in _BY_OUTPUT:
            cut = Cut(0, self.rank, self.count)
        elif _module(name) in _BY_INPUT and not name.endswith(".bias"):
            cut = Cut(1, self.rank, self.count)
        return self.source.read(name, shape, where, cut)

    def num_parameters(self) -> int:
        return self.source.num_parameters()


def _module(name: str) -> str:
    return name.split(".")[-2]


def _summed(weights: Weights[Linear, Norm], group: Group) -> Weights[Linear, Norm]:
    """Products over a rank's own inputs become sums over all ranks."""

    def summed(product: Linear) -> Linear:
        return lambda x: group.sum(product(x))

    layers = (
        replace(layer, output=summed(layer.output), down=summed(layer.down))
        for layer in weights.layers
    )
    return replace(weights, layers=tuple(layers))


def _divisible_config(source: Source, count: int) -> DecoderConfig:
    """The sizes of a decoder that can be divided among so many ranks; raises ModelError."""
    config = source.config
    if config is None:
        raise ModelError(
            f"only models of type {', '.join(MODEL_TYPES)} can be divided among target devices, "
            f"got {source.model_type!r}; choose one device"
        )
    sizes = {
        "attention heads": config.num_heads,
        "key and value heads": config.num_kv_heads,
        "values inside the MLP": config.intermediate_size,
    }
    most = config.most_ranks()
    for what, size in sizes.items():
        if size % count:
            raise ModelError(
                f"{size} {what} cannot be divided evenly among {count} target devices; choose a "
                f"number of devices that divides {most}"
            )
    return config


def needed_bytes(plan: Plan, rank: int) -> int:
    """Bytes that a rank's part takes; only rank 0 has a product with the vocabulary."""
    table = plan.config.vocab_size * plan.config.hidden_size * plan.dtype.itemsize
    is_left_out = rank > 0 and (not plan.config.tied or is_packed(plan.device, plan.dtype))
    return plan.total - is_left_out * table
