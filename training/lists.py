"""Chores on lists: sort, number, filter, dedupe, group, turn into Markdown, copy."""

from collections.abc import Callable

from training.tables import lay_out
from training.words import Words

_LIST = "<list|words|items|lines|names>"


def sort_list(words: Words) -> tuple[str, str]:
    """Words to sort by alphabet, often to be numbered."""
    items = _items(words, 4, 9, key=True)
    numbered = words.chance(0.5)
    instruction = words.spin(
        f"<Sort|Please sort|Order|Arrange|Put> <these|the> {_LIST} "
        "<alphabetically|in alphabetical order|from A to Z>"
        + ("< and number them| and number each line|, as a numbered list>" if numbered else "")
        + "<.|:|, please.|>"
    )
    return _ask(words, instruction, items), _write(sorted(items, key=str.lower), numbered)


def number_list(words: Words) -> tuple[str, str]:
    """Items to number in their order."""
    items = _items(words, 4, 9)
    instruction = words.spin(
        f"<Number|Please number|Add numbers to> <these|the> {_LIST}<.|:|, please.| in this order.>"
        if words.chance(0.6)
        else f"<Make|Write> a numbered list <of|from> <these|the> {_LIST}<.|:>"
    )
    return _ask(words, instruction, items), _write(items, True)


def dedupe(words: Words) -> tuple[str, str]:
    """Items of which some occur twice."""
    items = _items(words, 3, 7)
    repeated = items + words.rng.choices(items, k=words.number(1, 3))
    words.rng.shuffle(repeated)
    instruction = words.spin(
        "<Remove|Delete|Drop|Take out> <the duplicates|duplicates|repeated items|all repeats> "
        "from <this list|these words|the list|these lines><.|:|, please.|. Keep the order.>"
        if words.chance(0.8)
        else "<List each item once|Keep only the first of each item|Dedupe this list><.|:>"
    )
    return _ask(words, instruction, repeated), _write(list(dict.fromkeys(repeated)), False)


def group_list(words: Words) -> tuple[str, str]:
    """Items with a group each, to be grouped under Markdown headings."""
    what, maker = words.rng.choice((
        ("city", words.city), ("team", words.piece), ("colour", words.noun), ("day", words.noun),
        ("shop", words.last_name), ("owner", words.first_name), ("kind", words.noun),
        ("room", words.city), ("category", words.word), ("person", words.first_name),
    ))  # fmt: skip
    groups = words.distinct(words.number(2, 3), maker)
    item = words.rng.choice((words.thing, words.first_name, words.full_name, words.noun))
    items = words.distinct(words.number(4, 8), item)
    pairs = [(name, words.rng.choice(groups)) for name in items]
    pairs.sort(key=lambda pair: groups.index(pair[1]))
    form = words.rng.choice(("- {0} - {1}", "- {0}: {1}", "- {0}: {1}", "- {0}, {1}"))
    instruction = words.spin(
        f"<Group|Please group|Sort|Arrange|Organise> <these|the|these> <items|lines|entries> by "
        f"{what}<. Use Markdown headings.| under Markdown headings.| in Markdown.|:|.>"
        if words.chance(0.8)
        else f"<Make|Write> a Markdown list <of these items |>with a heading for each {what}<.|:>"
    )
    found: dict[str, list[str]] = {}
    for name, group in pairs:
        found.setdefault(group, []).append(name)
    answer = "\n\n".join(
        f"## {group}\n" + "\n".join(f"- {name}" for name in names) for group, names in found.items()
    )
    return lay_out(words, instruction, "\n".join(form.format(*pair) for pair in pairs)), answer


def to_bullets(words: Words) -> tuple[str, str]:
    """A comma-separated line to turn into bullets, a checklist or a numbered list."""
    kind, mark = words.rng.choice((
        ("<bullet list|bulleted list|list of bullet points|Markdown list>", "- {1}"),
        ("<checklist|to-do list|Markdown checklist>", "- [ ] {1}"),
        ("<numbered list|list with numbers>", "{0}. {1}"),
    ))  # fmt: skip
    items = _items(words, 4, 9) if words.chance(0.5) else _tasks(words)
    joined = ", ".join(items[:-1]) + words.rng.choice((" and ", ", ", ", and ")) + items[-1]
    instruction = words.spin(
        f"<Turn|Make|Change|Rewrite|Convert> <this|this line|this text|the following> into a {kind}"
        "<.|:|, please.>"
        if words.chance(0.7)
        else f"<Write|Show|Give me> <this|the text below> as a {kind}<.|:>"
    )
    answer = "\n".join(mark.format(i, item) for i, item in enumerate(items, 1))
    start = words.spin("<To do|Items|List|We need|Please note>: ")
    return lay_out(words, instruction, start + joined), answer


def copy_text(words: Words) -> tuple[str, str]:
    """Unseen words and numbers to repeat exactly."""
    makers: list[Callable[[], str]] = [
        words.piece, words.piece, words.code, words.identifier, words.piece, words.made_up,
        words.full_name, words.price, words.iso_date, words.email, words.city,
    ]  # fmt: skip
    pieces = [words.rng.choice(makers)() for _ in range(words.number(6, 24))]
    text = ""
    for piece in pieces:
        text += piece + words.rng.choice((" ", " ", " ", ", ", "; ", "\n", " - ", ". "))
    text = text.rstrip(" ,;-\n")
    instruction = words.spin(
        "<Repeat|Copy|Write out|Echo|Say> <this|this text|the following text|the text below> "
        "<exactly|word for word|without any change|as it is|unchanged><.|:|, please.>"
    )
    return lay_out(words, instruction, text), text


def _items(words: Words, low: int, high: int, key: bool = False) -> list[str]:
    makers = (words.noun, words.first_name, words.city, words.made_up, words.noun, words.word)
    phrases = (words.thing, words.full_name, words.code, words.identifier)
    maker = words.rng.choice(makers if key else makers + phrases)
    if words.chance(0.2):
        return words.distinct(words.number(low, high), words.rng.choice((words.noun, words.word)))
    return words.distinct(words.number(low, high), maker)


def _tasks(words: Words) -> list[str]:
    return words.distinct(words.number(3, 6), lambda: task(words))


def task(words: Words) -> str:
    """A short thing to do, such as `call Anna`."""
    return words.spin(
        f"<buy|order|find|pack|clean|paint|bring> <a|the|two|three|some> {words.thing()}"
        if words.chance(0.5)
        else f"<call|visit|thank|pay|invite|write to|meet> {words.first_name()}"
        f"<| in {words.city()}| on {words.date()}|>"
    )


def _ask(words: Words, instruction: str, items: list[str]) -> str:
    return lay_out(words, instruction, "\n".join(f"- {item}" for item in items))


def _write(items: list[str], numbered: bool) -> str:
    return "\n".join(f"{i}. {item}" if numbered else f"- {item}" for i, item in enumerate(items, 1))
