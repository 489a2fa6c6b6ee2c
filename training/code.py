"""Chores on code: rename, add type hints, add a docstring, on small Python functions."""

import re
from dataclasses import dataclass
from string import Template

from training.snippets import make_snippet
from training.tables import lay_out
from training.words import Words, pool


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A function with holes for names: `$a $b $c` are parameters, `$x $y` local names."""

    kinds: str
    returns: str
    doc: str
    body: str


_SKELETONS = [
    Skeleton(
        "list[float]",
        "float",
        "Return the sum of $a.",
        """
    $x = 0.0
    for $y in $a:
        $x += $y
    return $x""",
    ),
    Skeleton(
        "list[float], float",
        "float",
        "Return the sum of $a times $b.",
        """
    $x = sum($a)
    return $x * $b""",
    ),
    Skeleton(
        "list[int], int",
        "list[int]",
        "Return the numbers of $a above $b.",
        """
    $x = []
    for $y in $a:
        if $y > $b:
            $x.append($y)
    return $x""",
    ),
    Skeleton(
        "list[int]",
        "int",
        "Return the largest number of $a.",
        """
    $x = $a[0]
    for $y in $a:
        if $y > $x:
            $x = $y
    return $x""",
    ),
    Skeleton(
        "list[int]",
        "int",
        "Return the smallest number of $a.",
        """
    $x = $a[0]
    for $y in $a:
        if $y < $x:
            $x = $y
    return $x""",
    ),
    Skeleton(
        "list[str]",
        "dict[str, int]",
        "Count how often each item of $a occurs.",
        """
    $x = {}
    for $y in $a:
        $x[$y] = $x.get($y, 0) + 1
    return $x""",
    ),
    Skeleton(
        "list[float]",
        "float",
        "Return the mean of $a.",
        """
    $x = sum($a)
    return $x / len($a)""",
    ),
    Skeleton(
        "str",
        "str",
        "Return $a without spaces and in lower case.",
        """
    $x = $a.strip()
    return $x.lower().replace(" ", "")""",
    ),
    Skeleton(
        "str",
        "int",
        "Count the words of $a.",
        """
    $x = $a.split()
    return len($x)""",
    ),
    Skeleton(
        "str, str",
        "str",
        "Join $a and $b with a space.",
        """
    $x = $a + " " + $b
    return $x.strip()""",
    ),
    Skeleton(
        "list[str], str",
        "list[str]",
        "Return the items of $a that start with $b.",
        """
    return [$x for $x in $a if $x.startswith($b)]""",
    ),
    Skeleton(
        "list[str]",
        "list[str]",
        "Return $a without repeated items.",
        """
    $x = set()
    $y = []
    for item in $a:
        if item not in $x:
            $x.add(item)
            $y.append(item)
    return $y""",
    ),
    Skeleton(
        "int, int",
        "int",
        "Return the larger of $a and $b.",
        """
    if $a > $b:
        return $a
    return $b""",
    ),
    Skeleton(
        "int",
        "bool",
        "Tell whether $a is even.",
        """
    $x = $a % 2
    return $x == 0""",
    ),
    Skeleton(
        "int",
        "int",
        "Return the product of the numbers from 1 to $a.",
        """
    $x = 1
    for $y in range(1, $a + 1):
        $x *= $y
    return $x""",
    ),
    Skeleton(
        "float, float",
        "float",
        "Return $a reduced by $b percent.",
        """
    $x = $a * $b / 100
    return $a - $x""",
    ),
    Skeleton(
        "float, float, float",
        "float",
        "Keep $a between $b and $c.",
        """
    if $a < $b:
        return $b
    if $a > $c:
        return $c
    return $a""",
    ),
    Skeleton(
        "dict[str, int], str",
        "int",
        "Look up $b in $a, or return 0.",
        """
    if $b in $a:
        return $a[$b]
    return 0""",
    ),
    Skeleton(
        "str",
        "list[str]",
        "Read the lines of the file $a.",
        """
    with open($a) as $x:
        $y = $x.read()
    return $y.splitlines()""",
    ),
    Skeleton(
        "str, list[str]",
        "None",
        "Write the lines $b to the file $a.",
        """
    with open($a, "w") as $x:
        for $y in $b:
            $x.write($y + "\\n")""",
    ),
    Skeleton(
        "list[int]",
        "list[int]",
        "Return $a in reverse order.",
        """
    $x = []
    for $y in $a:
        $x.insert(0, $y)
    return $x""",
    ),
    Skeleton(
        "list[int], int",
        "int",
        "Return the position of $b in $a, or -1.",
        """
    for $x, $y in enumerate($a):
        if $y == $b:
            return $x
    return -1""",
    ),
    Skeleton(
        "float, float",
        "float",
        "Return the area of a rectangle $a by $b.",
        """
    $x = $a * $b
    return round($x, 2)""",
    ),
    Skeleton(
        "list[str]",
        "str",
        "Return the longest item of $a.",
        """
    $x = ""
    for $y in $a:
        if len($y) > len($x):
            $x = $y
    return $x""",
    ),
    Skeleton(
        "int, int",
        "list[int]",
        "Return the squares from $a to $b.",
        """
    $x = []
    while $a <= $b:
        $x.append($a * $a)
        $a += 1
    return $x""",
    ),
    Skeleton(
        "str",
        "str",
        "Return $a read backwards.",
        """
    $x = ""
    for $y in $a:
        $x = $y + $x
    return $x""",
    ),
    Skeleton(
        "list[str], list[int]",
        "dict[str, int]",
        "Pair the items of $a with those of $b.",
        """
    $x = {}
    for $y, value in zip($a, $b):
        $x[$y] = value
    return $x""",
    ),
    Skeleton(
        "int, int",
        "int",
        "Return the greatest common divisor of $a and $b.",
        """
    while $b:
        $a, $b = $b, $a % $b
    return $a""",
    ),
    Skeleton(
        "str, int",
        "str",
        "Repeat $a $b times.",
        """
    $x = []
    for $y in range($b):
        $x.append($a)
    return "".join($x)""",
    ),
    Skeleton(
        "list[int]",
        "int",
        "Count the even numbers of $a.",
        """
    $x = 0
    for $y in $a:
        if $y % 2 == 0:
            $x += 1
    return $x""",
    ),
    Skeleton(
        "float",
        "float",
        "Turn $a from degrees Celsius to Fahrenheit.",
        """
    $x = $a * 9 / 5
    return $x + 32""",
    ),
    Skeleton(
        "str, str",
        "bool",
        "Tell whether $b occurs in $a, whatever the case.",
        """
    $x = $a.lower()
    return $b.lower() in $x""",
    ),
]

_USUAL = {
    "list[float]": pool("prices weights amounts values costs lengths rates totals speeds"),
    "list[int]": pool("numbers scores counts ages points ids years levels"),
    "list[str]": pool("names words items lines tags cities labels keys"),
    "str": pool("text name title path word line label message"),
    "int": pool("limit count number size first start end n"),
    "float": pool("rate price width height amount value low high"),
    "dict[str, int]": pool("ages stock counts scores prices table"),
}
_LOCAL = pool("total result found best item value out current answer entry x i")
_VERBS = pool("get find make compute count read pick build check load keep show sum scan")


@dataclass(frozen=True, slots=True)
class Function:
    """A filled skeleton; `source` writes it with or without hints and docstring."""

    skeleton: Skeleton
    names: dict[str, str]

    def source(self, hints: bool = False, doc: bool = False) -> str:
        """The function's text."""
        kinds = split_kinds(self.skeleton.kinds)
        holes = zip(("$a", "$b", "$c"), kinds, strict=False)
        parameters = ", ".join(f"{hole}: {kind}" if hints else hole for hole, kind in holes)
        arrow = f" -> {self.skeleton.returns}" if hints else ""
        docstring = f'\n    """{self.skeleton.doc}"""' if doc else ""
        text = f"def $f({parameters}){arrow}:{docstring}{self.skeleton.body}"
        return Template(text).substitute(self.names)


def make_function(words: Words) -> Function:
    """A function of a random skeleton with random names, all different."""
    skeleton = words.rng.choice(_SKELETONS)
    names = {"f": _function_name(words)}
    kinds = split_kinds(skeleton.kinds)
    for hole in "abcxy":
        usual = _LOCAL if hole in "xy" else _USUAL[kinds["abc".index(hole) % len(kinds)]]
        name = names["f"]
        while name in names.values():
            name = words.rng.choice(usual) if words.chance(0.5) else words.identifier()
        names[hole] = name
    return Function(skeleton, names)


def split_kinds(kinds: str) -> list[str]:
    """The types of a comma-separated list; commas inside brackets do not count."""
    return re.split(r", (?![^\[]*\])", kinds)


def rename(words: Words) -> tuple[str, str]:
    """Code in which one or two names are to be changed."""
    before, names = _code_and_names(words)
    used = [name for name in names if re.search(rf"\b{name}\b", before)]
    count = min(len(used), words.rng.choice((1, 1, 2)))
    old = words.rng.sample(used, count)
    new = words.distinct(count, lambda: _fresh_name(words, before))
    pair = words.spin("<`old` to `new`|`old` to `new`|old to new|`old` into `new`>")
    listed = " and ".join(
        pair.replace("old", "\n").replace("new", b).replace("\n", a)
        for a, b in zip(old, new, strict=True)
    )
    what = words.spin("< the variable| the name|||>") if count == 1 else ""
    instruction = words.spin(
        f"<Rename|Please rename|Change|Can you rename|In this code, rename>{what} {listed}"
        "< in this code| in this function| everywhere|||>"
        "<.|:|. Change nothing else.|, please.|. Show the whole code.>"
    )
    changes = dict(zip(old, new, strict=True))
    after = re.sub(r"\w+", lambda found: changes.get(found[0], found[0]), before)
    return _with_code(words, instruction, before, after)


def add_hints(words: Words) -> tuple[str, str]:
    """A function without type hints."""
    function = make_function(words)
    doc = words.chance(0.3)
    instruction = words.spin(
        "<Add|Please add|Put|Can you add> <type hints|type annotations|types> "
        "to <this function|this code|the function|the following function|this Python function>"
        "<.|:|, please.|. Change nothing else.|. Annotate the result too.>"
        if words.chance(0.8)
        else "<Annotate|Type> <this function|the function below|the parameters and the result><.|:>"
    )
    return _with_code(words, instruction, function.source(doc=doc), function.source(True, doc))


def add_doc(words: Words) -> tuple[str, str]:
    """A function without a docstring."""
    function = make_function(words)
    hints = words.chance(0.4)
    instruction = words.spin(
        "<Add|Please add|Write|Put|Can you add> a <docstring|one-line docstring|short docstring> "
        "<to|for> <this function|this code|the function|the following function>"
        "<.|:|, please.|. Change nothing else.>"
        if words.chance(0.8)
        else "<Document|Describe> <this function|the function below> <in|with> a docstring<.|:>"
    )
    return _with_code(words, instruction, function.source(hints), function.source(hints, True))


def add_hints_and_doc(words: Words) -> tuple[str, str]:
    """A function without type hints and docstring."""
    function = make_function(words)
    instruction = words.spin(
        "<Add|Please add|Write|Can you add> <type hints and a docstring|a docstring and type hints|"
        "type annotations and a docstring> <to|for> <this function|this code|the function>"
        "<.|:|, please.|. Change nothing else.>"
    )
    return _with_code(words, instruction, function.source(), function.source(True, True))


def _with_code(words: Words, instruction: str, before: str, after: str | None) -> tuple[str, str]:
    fenced = words.chance(0.5)
    prompt = lay_out(words, instruction, before, "python" if fenced else None)
    return prompt, f"```python\n{after}\n```" if fenced else str(after)


def _code_and_names(words: Words) -> tuple[str, list[str]]:
    if words.chance(0.6):
        snippet = make_snippet(words)
        return snippet.text, snippet.names
    function = make_function(words)
    text = function.source(hints=words.chance(0.25), doc=words.chance(0.25))
    return text, list(function.names.values())


def _function_name(words: Words) -> str:
    draw = words.rng.random()
    if draw < 0.5:
        return f"{words.rng.choice(_VERBS)}_{words.identifier()}"
    return words.identifier()


def _fresh_name(words: Words, text: str) -> str:
    name = words.identifier()
    while re.search(rf"\b{name}\b", text):
        name = words.identifier()
    return name
