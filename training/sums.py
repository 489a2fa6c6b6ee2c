"""Sums, done in small steps as on paper."""

from training.words import Words


def plain_sum(words: Words) -> tuple[str, str]:
    """One addition, subtraction or multiplication, to be done step by step."""
    kind = words.rng.choice(("add", "subtract", "multiply"))
    a, b = words.number(11, 99), words.number(11, 99)
    if kind == "add":
        ask, steps, result = f"{a} + {b}", add(a, b), a + b
    elif kind == "subtract":
        a, b = max(a, b), min(a, b)
        ask, steps, result = f"{a} - {b}", subtract(a, b), a - b
    else:
        a, b = words.number(2, 12), words.number(2, 9)
        ask, steps, result = f"{a} x {b}", [f"{a} x {b} = {a * b}"], a * b
    question = words.spin(
        f"<What is|Work out|Compute|Calculate|How much is|Please work out|Find> {ask}"
        "<, step by step|, in small steps|. Show your steps|? Go step by step|>"
    )
    end = "" if question.endswith("step") else "."
    return f"{question}{end}", "\n".join([*steps, f"Answer: {result}"])


def word_problem(words: Words) -> tuple[str, str]:
    """A story of two or three sums."""
    who, thing, box = words.first_name(), words.thing() + "s", words.noun()
    number, each = words.number(3, 9), words.number(2, 12)
    total = number * each
    story = words.spin(
        f"<{who} has|{who} buys|{who} packs|{who} fills|{who} finds|There are> "
        f"{number} {box}s <with|of> {each} {thing}<| each>."
        if words.chance(0.6)
        else f"<Each {box} holds|A {box} holds|Every {box} has> {each} {thing}. "
        f"<{who} has|There are|{who} fills> {number} {box}s."
    )
    lines = [f"{number} {box}s with {each} {thing}:", f"{each} x {number} = {total}"]
    for _ in range(words.rng.choice((1, 1, 2))):
        change = words.number(2, max(2, min(total - 1, 39)))
        if words.chance(0.6) and total > 20:
            story += " " + words.spin(
                f"<{who}|{who}|Then {who}|Later {who}> "
                f"<sells|gives away|loses|uses|breaks|throws away|eats> {change} <of them|{thing}>."
            )
            lines += [f"{change} go:", *subtract(total, change)]
            total -= change
        else:
            story += " " + words.spin(
                f"<{who}|Then {who}|A friend|Later a friend> "
                f"<adds|brings|finds|buys> {change} more<| {thing}>."
            )
            lines += [f"{change} come:", *add(total, change)]
            total += change
    story += " " + words.spin(
        f"How many {thing} are <left|there now|there in the end>?"
        if words.chance(0.7)
        else f"How many {thing} does {who} have <now|in the end|at the end>?"
    )
    return story, "\n".join([*lines, f"Answer: {total} {thing}"])


def add(a: int, b: int) -> list[str]:
    """The steps of `a + b`: the parts of b one by one, the largest first."""
    lines, total = [], a
    for part in parts(b):
        lines.append(f"{total} + {part} = {total + part}")
        total += part
    return lines


def subtract(a: int, b: int) -> list[str]:
    """The steps of `a - b`: the parts of b one by one, the largest first."""
    lines, total = [], a
    for part in parts(b):
        lines.append(f"{total} - {part} = {total - part}")
        total -= part
    return lines


def parts(number: int) -> list[int]:
    """Tens and ones of a number below a hundred, without zeros."""
    found = [number // 10 * 10, number % 10]
    return [part for part in found if part] or [0]
