"""Random code that means nothing: for chores in which each name must be copied, not guessed."""

from dataclasses import dataclass

from training.words import Words, pool

_PARTS = (
    "{a} = {e}", "{a} = {e}", "{a} += {e}", "{a} = {f}({b}, {c})", "{a}.append({b})", "print({a})",
    '{a}["{k}"] = {b}', "{a} = {b}.{m}({c})", "{a} -= {n}", "{a}, {b} = {b}, {c}", "{f}({a})",
    '{a} = "{k}"', "{a} = [{b}, {c}]", "self.{a} = {b}", "{a} = not {b}", "del {a}[{n}]",
)  # fmt: skip
_HEADS = (
    "if {a} > {b}:", "if {a} == {n}:", "for {a} in {b}:", "while {a} < {n}:", "if not {a}:",
    "for {a}, {b} in enumerate({c}):", "if {a} in {b} and {c}:", "with open({a}) as {b}:",
    "for {a}, {b} in zip({c}, {d}):", "for {a} in range({b}):", "if {a} < {b} <= {n}:",
)  # fmt: skip
_VALUES = (
    "{b} + {c}", "{b} * {n}", "len({b})", "max({b}, {c})", "{b}[{n}]", "{n}", "{b} - {c}",
    "{b}.{m}",
    "[{b} for {b} in {c}]", "{b} or {c}", "{f}({b})", "{b} // {c}", "{{}}", "[]", "sum({b})",
    "{b} * {c} + {d}", "{b} % {n} == {c}", "str({b})", "sorted({b}, key={c})", "({b} + {c}) / {d}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Snippet:
    """Python text, and the names that may be renamed in it."""

    text: str
    names: list[str]


def make_snippet(words: Words) -> Snippet:
    """A function, a class or bare lines with two to six names of their own."""
    names = words.distinct(words.number(3, 6), lambda: _name(words))
    draw = words.rng.random()
    if draw < 0.25:
        return _used(_body(words, names, 0, words.number(3, 7)), names)
    if draw < 0.4:
        return _used(_class(words, names), names)
    parameters = ", ".join(names[1 : 1 + words.number(1, min(3, len(names) - 1))])
    body = _body(words, names[1:], 1, words.number(2, 6))
    end = f"    return {_fill(words, '{e}', names[1:])}"
    return _used([f"def {names[0]}({parameters}):", *body, end], names)


def _class(words: Words, names: list[str]) -> list[str]:
    fields = names[1 : 1 + words.number(2, 3)]
    lines = [f"class {words.made_up().capitalize()}:"]
    lines += [f"    def __init__(self, {', '.join(fields)}):"]
    lines += [f"        self.{field} = {field}" for field in fields]
    return [*lines, "", f"    def {names[0]}(self):", f"        return self.{fields[-1]}"]


def _body(words: Words, names: list[str], depth: int, count: int) -> list[str]:
    lines: list[str] = []
    while count > 0:
        if depth < 3 and count > 1 and words.chance(0.35):
            inner = words.number(1, min(3, count - 1))
            lines.append("    " * depth + _fill(words, words.rng.choice(_HEADS), names))
            lines += _body(words, names, depth + 1, inner)
            count -= inner + 1
        else:
            lines.append("    " * depth + _fill(words, words.rng.choice(_PARTS), names))
            count -= 1
    return lines


def _fill(words: Words, form: str, names: list[str]) -> str:
    holes = {hole: words.rng.choice(names) for hole in "abcd"}
    value = words.rng.choice(_VALUES).replace("{f}", "{b}")
    return form.replace("{e}", value).format(
        **holes, n=words.number(0, 20), k=words.word(), f=words.rng.choice(names), m=names[-1]
    )


def _name(words: Words) -> str:
    usual = pool(
        "i n x total result items value count data acc tmp key row line index size node out"
    )
    return words.rng.choice(usual) if words.chance(0.35) else words.identifier()


def _used(lines: list[str], names: list[str]) -> Snippet:
    text = "\n".join(lines)
    return Snippet(text, [name for name in names if name in text])
