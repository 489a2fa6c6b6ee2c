"""Chores on reading: questions about a paragraph, tasks of a meeting."""

from training.lists import task
from training.tables import lay_out
from training.words import DAYS, Words

# A fact is a sentence, with questions that it answers and the short answers to them.
Fact = tuple[str, list[tuple[str, str]]]


def answer_question(words: Words) -> tuple[str, str]:
    """A paragraph and one to three questions; answers quote the sentence that says it."""
    facts = _place(words) if words.chance(0.6) else _person(words)
    text = " ".join(sentence for sentence, _ in facts)
    chosen = words.rng.sample(facts, min(len(facts), words.rng.choice((1, 1, 2, 2, 3))))
    asked = [(sentence, *words.rng.choice(questions)) for sentence, questions in chosen]
    head = words.spin("<Read this text:|Here is a text:|Text:|Read the text and answer.|>")
    if len(asked) == 1:
        sentence, question, short = asked[0]
        tail = words.spin("<| Quote the text.| Answer from the text.>")
        order = [head, text, question + tail] if words.chance(0.7) else [question + tail, text]
        return "\n\n".join(order).strip(), f'{short}. The text says: "{sentence}"'
    listed = "\n".join(f"{i}. {question}" for i, (_, question, _) in enumerate(asked, 1))
    ask = words.spin("<Answer these questions:|Questions:|Answer the questions below:>")
    answers = [f'{i}. {short}. The text says: "{s}"' for i, (s, _, short) in enumerate(asked, 1)]
    return f"{head}\n\n{text}\n\n{ask}\n{listed}".strip(), "\n".join(answers)


def summarise_meeting(words: Words) -> tuple[str, str]:
    """Notes of a meeting of which only the tasks are to be listed."""
    lines: list[tuple[str, str | None]] = []
    for person in words.distinct(words.number(2, 5), words.first_name):
        job = task(words)
        when = words.spin(f"<by|before|on|until> <{words.rng.choice(DAYS)}|{words.date()}>")
        verb = words.spin("<will|is going to|agreed to|promised to|has to|offered to>")
        lines.append((f"{person} {verb} {job} {when}.", f"- {person}: {job} ({when})"))
    for _ in range(words.number(1, 4)):
        lines.insert(words.number(0, len(lines)), (_chatter(words), None))
    instruction = words.spin(
        "<Summarise|Summarize|Sum up> <this meeting|these notes|the meeting|the note> "
        "<in bullet points|as a list of tasks|as bullets|in a short list>"
        "<.|:|: who does what.|, please.>"
        if words.chance(0.6)
        else "<List|Extract|Write down> <the tasks|who does what|the action items|all tasks> "
        "from <these notes|this meeting|the meeting notes><.|:|, with dates.>"
    )
    answer = "\n".join(bullet for _, bullet in lines if bullet)
    return lay_out(words, instruction, " ".join(line for line, _ in lines)), answer


def _place(words: Words) -> list[Fact]:
    kind = words.spin("<museum|library|bridge|school|theatre|lighthouse|market|garden|station>")
    name = f"the {words.made_up().capitalize()} {kind.capitalize()}"
    big = name[0].upper() + name[1:]
    who, boss, city = words.full_name(), words.full_name(), words.city()
    year, other = words.number(1700, 1990), words.number(1991, 2030)
    count, thing, price = words.number(12, 990), words.thing(), words.number(2, 60)
    river, opens, closes = words.made_up().capitalize(), words.clock(), words.clock()
    day = words.rng.choice(DAYS)
    first: Fact = (
        f"{big} was <built|opened> in {year} by {who}.",
        [(f"Who <built|opened> {name}?", who), (f"When was {name} <built|opened>?", f"In {year}")],
    )
    more: list[Fact] = [
        (
            f"It stands in {city}, near the river {river}.",
            [
                (f"Where is {name}?", f"In {city}"),
                (f"In which city is {name}?", f"In {city}"),
                ("Which river is near it?", f"The river {river}"),
            ],
        ),
        (
            f"Today {boss} is in charge of it.",
            [(f"Who is in charge of {name}?", boss), ("Who is in charge today?", boss)],
        ),
        (
            f"About {count} people visit it every day.",
            [("How many people visit it every day?", f"About {count}")],
        ),
        (
            f"A ticket costs {price} euros.",
            [
                ("How much is a ticket?", f"{price} euros"),
                ("What does a ticket cost?", f"{price} euros"),
            ],
        ),
        (
            f"It is open from {opens} to {closes}, but it is closed on {day}.",
            [("On which day is it closed?", day), ("When does it open?", f"At {opens}")],
        ),
        (
            f"It is known for a {thing} that was found there in {other}.",
            [
                ("What is it known for?", f"A {thing}"),
                (f"When was the {thing} found?", f"In {other}"),
            ],
        ),
        (
            f"In {other} it was painted {words.noun()} after a fire.",
            [("When was the fire?", f"In {other}"), ("When was it painted?", f"In {other}")],
        ),
    ]
    verb = words.rng.choice(("built", "opened"))
    sentence, questions = first
    fixed = [(question.replace("<built|opened>", verb), short) for question, short in questions]
    chosen = words.rng.sample(more, words.number(2, 5))
    return [(sentence.replace("<built|opened>", verb), fixed), *chosen]


def _person(words: Words) -> list[Fact]:
    name = words.full_name()
    first = name.split()[0]
    born, city, home, friend = (
        words.number(1800, 2000), words.city(), words.city(), words.full_name(),
    )  # fmt: skip
    thing, word, count = words.thing(), words.made_up().capitalize(), words.number(2, 60)
    year, day = born + words.number(18, 40), words.rng.choice(DAYS)
    more: list[Fact] = [
        (
            f"{first} moved to {home} in {year}.",
            [
                (f"Where did {first} move?", f"To {home}"),
                (f"When did {first} move to {home}?", f"In {year}"),
            ],
        ),
        (
            f"Together with {friend}, {first} founded the company {word}.",
            [
                ("What is the company called?", word),
                (f"With whom did {first} found the company?", f"With {friend}"),
            ],
        ),
        (
            f"The company makes one {thing} a week and has {count} workers.",
            [
                ("What does the company make?", f"One {thing} a week"),
                ("How many workers are there?", f"{count} workers"),
            ],
        ),
        (
            f"On {day} {first} plays the {words.spin('<piano|guitar|violin|flute|drum>')}.",
            [(f"When does {first} play?", f"On {day}")],
        ),
        (
            f"{first} keeps a {thing} from {city} on the desk.",
            [(f"What does {first} keep on the desk?", f"A {thing} from {city}")],
        ),
    ]
    start: Fact = (
        f"{name} was born in {city} in {born}.",
        [
            (f"Where was {first} born?", f"In {city}"),
            (f"When was {name} born?", f"In {born}"),
            (f"Who was born in {city}?", name),
        ],
    )
    return [start, *words.rng.sample(more, words.number(2, 4))]


def _chatter(words: Words) -> str:
    return words.spin(
        "<The meeting began with coffee.|Everybody liked the new room.|It was raining outside.|"
        "We talked about the holidays.|The last item was short.|There was cake for everybody.|"
        f"{words.first_name()} was ill and could not come.|The budget was not discussed.|"
        f"The next meeting is on {words.rng.choice(DAYS)}.|The room was cold.|"
        f"{words.full_name()} showed the plan for {words.city()}.|"
        f"We looked at the {words.thing()} for a while.|Nobody had questions.|"
        f"{words.first_name()} told a story about a {words.thing()}.|The lamp was broken again.>"
    )
