"""Chores on letters and notes: replace facts, extract fields, write fields as a text."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from training.tables import lay_out
from training.words import Words

_LINES = (
    "<Thank you|Many thanks> for <your letter|your message|the {thing}> of {date}.",
    "<I will|We will|I hope to> <arrive|be> in {city} on {date}<| at {clock}>.",
    "<Your|The> order {code} <was sent|is ready|left {city}> on {date}.",
    "<Please bring|Please send|Do not forget> the {thing}<| to {street}>.",
    "<Our|My> new address is {street}, {city}.",
    "The {thing} <is|was> <very good|too small|broken|a great help|still in {city}>.",
    "<Let us meet|We could meet|I will wait> at {clock} <at|near> {street}.",
    "<Your friend|My colleague|My sister|My neighbour> {sender} <will call you|sends greetings>.",
    "<I|We> <have not|never> <seen|received> the {thing}, {name}.",
    "<It|Everything> will be ready <by|on> {date}.",
    "<Tell me|Please tell us|Let me know> if <the {thing} is ready|you come to {city}> on {date}.",
    "{city} is <cold|quiet|full of people|far away> <in winter|now|this week>.",
    "<The train|The bus|The ship> <leaves|arrives> at {clock}, so {name} can <rest|eat> before.",
    "<We paid|I paid|They want> {price} euros for the {thing}.",
)


@dataclass(frozen=True, slots=True)
class Field:
    """A fact that a note may hold: how to make it, and sentences that say it."""

    make: Callable[[], str]
    said: str


def edit_letter(words: Words) -> tuple[str, str]:
    """A letter in which one or two names, places, dates or things are to be replaced."""
    facts = _facts(words)
    letter = _letter(words).format(**facts)
    used = [key for key in facts if _occurs(facts[key], letter)]
    keys = words.rng.sample(used, min(len(used), words.rng.choice((1, 1, 2))))
    fresh = _facts(words)
    while any(fresh[key] in letter for key in keys):
        fresh = _facts(words)
    verb, between = words.rng.choice((("Replace", "with"), ("Replace", "by"), ("Change", "to")))
    changes = [f"{facts[key]} {between} {fresh[key]}" for key in keys]
    listed = ", ".join(changes[:-1]) + (" and " if len(changes) > 1 else "") + changes[-1]
    instruction = words.spin(
        f"<{verb}|Please {verb.lower()}|Can you {verb.lower()}|In this letter, {verb.lower()}> "
        f"{listed}< in this letter| in the letter| in this text| everywhere|||>"
        "<.|:|. Keep the rest.|, please.|. Change nothing else.>"
    )
    pattern = "|".join(rf"\b{re.escape(facts[key])}\b" for key in keys)
    new = {facts[key]: fresh[key] for key in keys}
    return lay_out(words, instruction, letter), re.sub(pattern, lambda at: new[at[0]], letter)


def extract_fields(words: Words) -> tuple[str, str]:
    """A note of which some fields are asked for, as lines."""
    fields, note = _note(words)
    keys = words.rng.sample(list(fields), words.number(2, len(fields)))
    listed = ", ".join(keys[:-1]) + words.rng.choice((" and ", ", ")) + keys[-1]
    form = "<as key: value lines|one per line|line by line|as a list of fields|>"
    note_name = "<this note|this text|the note|this message|this>"
    instruction = (
        words.spin(
            f"<Extract|Get|Find|Pull out|Give me> <the |>{listed} from {note_name} {form}"
            "<.|:|, please.>"
            if words.chance(0.7)
            else f"From {note_name}, <extract|list|give|write down> <the |>{listed} {form}<.|:>"
        )
        .replace(" .", ".")
        .replace(" :", ":")
        .replace(" ,", ",")
    )
    return lay_out(words, instruction, note), "\n".join(f"{key}: {fields[key]}" for key in keys)


def _facts(words: Words) -> dict[str, str]:
    name, sender = words.distinct(2, words.first_name)
    return {
        "name": name,
        "sender": sender,
        "city": words.city(),
        "date": words.date(),
        "thing": words.thing(),
        "clock": words.clock(),
        "code": words.code(),
        "price": words.price(),
        "street": f"{words.made_up().capitalize()} Street {words.number(1, 99)}",
    }


def _letter(words: Words) -> str:
    lines = words.rng.sample(_LINES, words.number(2, 4))
    if len(lines) > 3 and words.chance(0.4):
        lines[2] = f"\n\n{lines[2]}"
    body = " ".join(lines).replace(" \n", "\n")
    end = "<Best wishes|Kind regards|Yours|Best regards|Many greetings|See you soon>,\n{sender}"
    return words.spin("<Dear|Hello|Hi|Dear> {name},\n\n" + body + "\n\n" + end)


def _occurs(fact: str, text: str) -> bool:
    return bool(re.search(rf"\b{re.escape(fact)}\b", text))


def _note(words: Words) -> tuple[dict[str, str], str]:
    makers = _fields(words)
    keys = words.rng.sample(list(makers), words.number(3, 6))
    values = {key: makers[key].make() for key in keys}
    return values, " ".join(words.spin(makers[key].said).format(values[key]) for key in keys)


def _fields(words: Words) -> dict[str, Field]:
    def pieces() -> str:
        return str(words.number(2, 500))

    def phone() -> str:
        return f"{words.number(100, 999)} {words.number(1000, 9999)}"

    return {
        "name": Field(words.full_name, "<The customer is {0}.|{0} called today.|It is for {0}.>"),
        "city": Field(words.city, "<It goes to {0}.|The place is {0}.|They live in {0}.>"),
        "item": Field(words.thing, "<The order is one {0}.|They want a {0}.|It is about the {0}.>"),
        "price": Field(words.price, "<It costs {0} euros.|The price is {0}.|We agreed on {0}.>"),
        "date": Field(words.date, "<Delivery is on {0}.|It is due on {0}.|Please do it on {0}.>"),
        "time": Field(words.clock, "<Best at {0}.|Come at {0}.|The call is at {0}.>"),
        "email": Field(words.email, "<Write to {0}.|The mail address is {0}.|Mail goes to {0}.>"),
        "code": Field(words.code, "<The code is {0}.|Reference {0}.|The order number is {0}.>"),
        "quantity": Field(pieces, "<They need {0} pieces.|The quantity is {0}.|Send {0} of them.>"),
        "colour": Field(words.noun, "<The colour should be {0}.|They want it in {0}.>"),
        "phone": Field(phone, "<The phone number is {0}.|Call {0}.|Phone: {0}.>"),
        "company": Field(
            lambda: f"{words.made_up().capitalize()} {words.spin('<Ltd|Inc|GmbH|Group>')}",
            "<The company is {0}.|It is sent by {0}.|The bill goes to {0}.>",
        ),
    }
