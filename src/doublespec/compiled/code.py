"""A small language for kernels: Python that writes LLVM's intermediate representation.

A `Number` stands for a number of the kernel, not of Python: `a + b` writes an addition. There are
whole numbers (64 bits), truth values, addresses, and float32, alone or LANES at a time. LLVM may
not reorder or fuse what is written, so that the bits are those of the source on every CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

LANES = 16

INTEGER, BIT, FLOAT = ir.IntType(64), ir.IntType(1), ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)
ADDRESS = ir.PointerType()
WORD, HALF, BYTE = ir.IntType(32), ir.IntType(16), ir.IntType(8)
_WORDS, _PAIRS = ir.VectorType(WORD, LANES), ir.VectorType(WORD, LANES // 2)
_BYTES = ir.VectorType(BYTE, LANES)

# How weights hold their numbers. bfloat16 is the upper half of a float32; of LANES of them number i
# stands beside number i + LANES / 2, in one word. (Those in tiles are read by no function of here,
# but for single ones.)
_UNITS = {"float32": (FLOAT, FLOATS), "bfloat16": (HALF, _PAIRS), "int8": (BYTE, _BYTES)}

# What LLVM is told of memory that will be used soon.
_PREFETCH = "llvm.prefetch.p0"
_TO_READ, _NEAREST_CACHE, _DATA = 0, 3, 1


class Number:
    """A number of a kernel, or LANES of them."""

    __slots__ = ("code", "value")

    def __init__(self, code: "Code", value: Any) -> None:
        self.code = code
        self.value = value

    @property
    def is_float(self) -> bool:
        return self.value.type in (FLOAT, FLOATS)

    def __add__(self, other: "Operand") -> "Number":
        return self._with(other, "fadd" if self.is_float else "add")

    def __sub__(self, other: "Operand") -> "Number":
        return self._with(other, "fsub" if self.is_float else "sub")

    def __mul__(self, other: "Operand") -> "Number":
        return self._with(other, "fmul" if self.is_float else "mul")

    def __truediv__(self, other: "Operand") -> "Number":
        return self._with(other, "fdiv")

    def __floordiv__(self, other: "Operand") -> "Number":
        return self._with(other, "udiv")

    def __mod__(self, other: "Operand") -> "Number":
        return self._with(other, "urem")

    def __and__(self, other: "Operand") -> "Number":
        return self._with(other, "and_")

    def __or__(self, other: "Operand") -> "Number":
        return self._with(other, "or_")

    def __xor__(self, other: "Operand") -> "Number":
        return self._with(other, "xor")

    def __lt__(self, other: "Operand") -> "Number":
        return self._compared("<", other)

    def __le__(self, other: "Operand") -> "Number":
        return self._compared("<=", other)

    def __gt__(self, other: "Operand") -> "Number":
        return self._compared(">", other)

    def __ge__(self, other: "Operand") -> "Number":
        return self._compared(">=", other)

    def equals(self, other: "Operand") -> "Number":
        return self._compared("==", other)

    def then(self, yes: "Number", no: "Operand") -> "Number":
        """`yes` where this is true, else `no`."""
        return self.code.number(self.code.builder.select(self.value, yes.value, yes.like(no).value))

    def like(self, other: "Operand") -> "Number":
        """`other` as a number of the same type."""
        if isinstance(other, Number):
            return other
        kind = self.value.type
        is_wide = isinstance(kind, ir.VectorType)
        return self.code.number(ir.Constant(kind, [other] * LANES if is_wide else other))

    def _with(self, other: "Operand", operation: str) -> "Number":
        write = getattr(self.code.builder, operation)
        return self.code.number(write(self.value, self.like(other).value))

    def _compared(self, sign: str, other: "Operand") -> "Number":
        builder, right = self.code.builder, self.like(other).value
        compare = builder.fcmp_ordered if self.is_float else builder.icmp_unsigned
        return self.code.number(compare(sign, self.value, right))


Operand = Number | int | float


class _Callee(ir.Value):  # type: ignore[misc]  # llvmlite has no types
    """An address as llvmlite wants to see what is called."""

    def __init__(self, address: Any, kind: Any) -> None:
        self.type, self.function_type = address.type, kind
        self._address = address

    def get_reference(self) -> str:
        return str(self._address.get_reference())


class Variable:
    """A number that changes: a register, once LLVM has been through it."""

    def __init__(self, code: "Code", first: Number) -> None:
        self._code, self._kind = code, first.value.type
        with code.builder.goto_entry_block():
            self._place = code.builder.alloca(self._kind)
        self.set(first)

    def get(self) -> Number:
        return self._code.number(self._code.builder.load(self._place, typ=self._kind))

    def set(self, number: Number) -> None:
        self._code.builder.store(number.value, self._place)


class Code:
    """One function of a module, while it is written. `inner` ones are part of their callers."""

    def __init__(
        self, module: ir.Module, name: str, parameters: Mapping[str, Any], *, inner: bool = True
    ) -> None:
        kind = ir.FunctionType(ir.VoidType(), list(parameters.values()))
        function = ir.Function(module, kind, name)
        if inner:
            function.linkage = "internal"
            function.attributes.add("noinline")
        self.module = module
        self.builder = ir.IRBuilder(function.append_basic_block())
        self._arguments = dict(zip(parameters, map(self.number, function.args), strict=True))

    def __getitem__(self, parameter: str) -> Number:
        return self._arguments[parameter]

    def __enter__(self) -> "Code":
        return self

    def __exit__(self, *problem: object) -> None:
        self.builder.ret_void()

    def number(self, value: Any) -> Number:
        return Number(self, value)

    # -- numbers ---------------------------------------------------------------------------------

    def integer(self, value: int) -> Number:
        return self.number(ir.Constant(INTEGER, value))

    def wide(self, number: "Number | float") -> Number:
        """The same float32 in all lanes."""
        if not isinstance(number, Number):
            return self.number(ir.Constant(FLOATS, [number] * LANES))
        return self.number(self._spread(number.value, FLOATS))

    def words(self, number: Number) -> Number:
        """A whole number below 2^31, in all lanes as one of 32 bits."""
        return self.number(self._spread(self.builder.trunc(number.value, WORD), _WORDS))

    def null(self) -> Number:
        """No address."""
        return self.number(ir.Constant(ADDRESS, None))

    def is_set(self, address: Number) -> Number:
        """Whether it is not null."""
        return self.number(self.builder.icmp_unsigned("!=", address.value, self.null().value))

    def word(self, number: "Operand") -> Number:
        """A whole number below 2^31, as one of 32 bits."""
        value = self.integer(0).like(number).value
        return self.number(self.builder.trunc(value, WORD))

    def widened(self, word: Number) -> Number:
        """A number of 32 bits, as one of 64."""
        return self.number(self.builder.zext(word.value, INTEGER))

    def indices(self, first: Number) -> Number:
        """first, first + 1, ...: a whole number of 32 bits for each lane."""
        return self.words(first) + self.number(ir.Constant(_WORDS, list(range(LANES))))

    def fma(self, a: Number, b: Number, c: Number) -> Number:
        """a x b + c, rounded once."""
        return self._intrinsic("fma", a, b, c)

    def sqrt(self, number: Number) -> Number:
        return self._intrinsic("sqrt", number)

    def sum(self, numbers: Number) -> Number:
        """That of all lanes, from the first to the last."""
        return self._joined(numbers, lambda a, b: a + b)

    def largest(self, numbers: Number) -> Number:
        return self._joined(numbers, lambda a, b: (a > b).then(a, b))

    def smallest(self, words: Number) -> Number:
        return self._joined(words, lambda a, b: (a < b).then(a, b))

    def as_words(self, numbers: Number) -> Number:
        """The bits of float32, in lanes of 32 bits."""
        return self.number(self.builder.bitcast(numbers.value, _WORDS))

    def from_words(self, words: Number) -> Number:
        return self.number(self.builder.bitcast(words.value, FLOATS))

    def floats(self, words: Number) -> Number:
        """Whole numbers of 32 bits, with a sign, as float32."""
        return self.number(self.builder.sitofp(words.value, FLOATS))

    def shifted(self, words: Number, count: int) -> Number:
        """Lanes of 32 bits, `count` to the left."""
        return self.number(self.builder.shl(words.value, words.like(count).value))

    def shifted_right(self, words: Number, count: int, *, signed: bool = False) -> Number:
        """To the right, zeros following, or copies of the sign."""
        shift = self.builder.ashr if signed else self.builder.lshr
        return self.number(shift(words.value, words.like(count).value))

    def _spread(self, value: Any, kind: Any) -> Any:
        one = self.builder.insert_element(
            ir.Constant(kind, ir.Undefined), value, ir.Constant(WORD, 0)
        )
        return self.builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * LANES))

    def _joined(self, numbers: Number, join: Any) -> Number:
        lanes = [
            self.number(self.builder.extract_element(numbers.value, ir.Constant(WORD, i)))
            for i in range(LANES)
        ]
        total = lanes[0]
        for lane in lanes[1:]:
            total = join(total, lane)
        return total

    def _intrinsic(self, name: str, *numbers: Number) -> Number:
        kind = numbers[0].value.type
        values = [number.value for number in numbers]
        full_name = f"llvm.{name}.{f'v{LANES}f32' if kind == FLOATS else 'f32'}"
        function = self.module.globals.get(full_name)
        if function is None:
            signature = ir.FunctionType(kind, [kind] * len(values))
            function = ir.Function(self.module, signature, full_name)
        return self.number(self.builder.call(function, values))

    # -- memory ----------------------------------------------------------------------------------

    def offset(self, address: Number, index: Operand, kind: Any = FLOAT) -> Number:
        """Where the number with that index is, of numbers of one kind from an address on."""
        place = self.integer(0).like(index).value
        return self.number(self.builder.gep(address.value, [place], source_etype=kind))

    def load(self, address: Number, index: Operand, kind: Any = FLOAT) -> Number:
        """The number with that index: float32, a whole number or an address."""
        place = self.offset(address, index, kind)
        return self.number(self.builder.load(place.value, typ=kind))

    def load_one(self, address: Number, index: Operand, storage: str) -> Number:
        """The number with that index, in float32."""
        if storage == "float32":
            return self.load(address, index)
        half = self.load(address, index, HALF).value
        word = self.builder.shl(self.builder.zext(half, WORD), ir.Constant(WORD, 16))
        return self.number(self.builder.bitcast(word, FLOAT))

    def load_lanes(self, address: Number, index: Operand, storage: str = "float32") -> Number:
        """LANES numbers from that index on, in float32."""
        unit, wide = _UNITS[storage]
        place = self.offset(address, index, unit).value
        value = self.builder.load(place, typ=wide, align={FLOAT: 4, HALF: 2, BYTE: 1}[unit])
        if unit is BYTE:
            return self.number(self.builder.sitofp(self.builder.sext(value, _WORDS), FLOATS))
        if unit is HALF:
            return self.number(self._widened_pairs(value))
        return self.number(value)

    def prefetch(self, address: Number, index: Operand, storage: str, ahead: int) -> None:
        """Asks for what lies so many bytes behind the number with that index, to be read soon.
        Where nothing is, nothing happens."""
        function = self.module.globals.get(_PREFETCH)
        if function is None:
            signature = ir.FunctionType(ir.VoidType(), [ADDRESS, WORD, WORD, WORD])
            function = ir.Function(self.module, signature, _PREFETCH)
        unit, _ = _UNITS[storage]
        place = self.offset(self.offset(address, index, unit), ahead, BYTE)
        told = (ir.Constant(WORD, number) for number in (_TO_READ, _NEAREST_CACHE, _DATA))
        self.builder.call(function, [place.value, *told])

    def load_words(self, address: Number, index: Operand) -> Number:
        """LANES whole numbers of 32 bits from that index on."""
        place = self.offset(address, index, WORD).value
        return self.number(self.builder.load(place, typ=_WORDS, align=4))

    def _widened_pairs(self, words: Any) -> Any:
        """Both numbers of each word, by a shift and a mask: to widen them one by one takes twice as
        many instructions."""
        shift, mask = (ir.Constant(_PAIRS, [bits] * (LANES // 2)) for bits in (16, 0xFFFF0000))
        halves = self.builder.shl(words, shift), self.builder.and_(words, mask)
        order = ir.Constant(_WORDS, list(range(LANES)))
        return self.builder.bitcast(self.builder.shuffle_vector(*halves, order), FLOATS)

    def store(self, number: Number, address: Number, index: Operand) -> None:
        """A float32 or LANES of them, a whole number, or an address."""
        kind = number.value.type
        place = self.offset(address, index, FLOAT if kind == FLOATS else kind)
        is_small = number.is_float or kind == WORD
        self.builder.store(number.value, place.value, align=4 if is_small else 8)

    def store_halves(self, words: Number, address: Number, index: Operand) -> None:
        """The upper halves of LANES words, one after the other."""
        halves = self.builder.trunc(self.shifted_right(words, 16).value, ir.VectorType(HALF, LANES))
        self.builder.store(halves, self.offset(address, index, HALF).value, align=2)

    def claim(self, address: Number, index: Operand, count: Number) -> Number:
        """Adds to a whole number to which other threads add, too; what it was before."""
        place = self.offset(address, index, INTEGER).value
        return self.number(self.builder.atomic_rmw("add", place, count.value, "monotonic"))

    def claimed(self, address: Number, index: Operand) -> Number:
        """What such a number is just now."""
        place = self.offset(address, index, INTEGER).value
        return self.number(self.builder.load_atomic(place, "monotonic", 8, typ=INTEGER))

    def room(self, count: int) -> Number:
        """Room for so many whole numbers or addresses, until the function ends."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(INTEGER, count)
        place.type = ADDRESS  # llvmlite's own type is one of old
        return self.number(place)

    def function(self, name: str) -> Number:
        """Its address."""
        return self.number(self.module.globals[name])

    # -- flow ------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Number]:
        """Goes through start, start + step, ... while below `stop`."""
        zero = self.integer(0)
        index, last = Variable(self, zero.like(start)), zero.like(stop)
        with self.while_(lambda: index.get() < last):
            yield index.get()
            index.set(index.get() + step)

    @contextmanager
    def while_(self, condition: Callable[[], Number]) -> Iterator[None]:
        """As often as the condition, written before each time, is true."""
        builder = self.builder
        head, body = builder.append_basic_block(), builder.append_basic_block()
        after = builder.append_basic_block()
        builder.branch(head)
        builder.position_at_end(head)
        builder.cbranch(condition().value, body, after)
        builder.position_at_end(body)
        yield
        builder.branch(head)
        builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Number) -> Iterator[None]:
        with self.builder.if_then(condition.value):
            yield

    def call(self, name: str, *arguments: Operand) -> Number:
        values = [self.integer(0).like(argument).value for argument in arguments]
        return self.number(self.builder.call(self.module.globals[name], values))

    def call_at(self, address: Number, *arguments: Number) -> None:
        """Calls a function of another module, which is somewhere in this process."""
        values = [argument.value for argument in arguments]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        self.builder.call(_Callee(address.value, kind), values)
