"""Chores on code: rename, add type hints, add a docstring, on small Python functions."""

import re
from dataclasses import dataclass
from string import Template

from training.skeletons import SKELETONS, Skeleton
from training.snippets import make_snippet
from training.tables import lay_out
from training.words import Words, pool

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
    skeleton = words.rng.choice(SKELETONS)
    names = {"f": _function_name(words)}
    kinds = split_kinds(skeleton.kinds)
    for hole in "abcxy":
        usual = _LOCAL if hole in "xy" else _USUAL[kinds["abc".index(hole) % len(kinds)]]
        name = names["f"]
        while name in names.values():
            name = words.rng.choice(usual) if words.chance(0.25) else words.identifier()
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
    if words.chance(0.35):
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
