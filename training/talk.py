"""Small talk: greetings, thanks, and questions about the model itself."""

from collections.abc import Callable

from training.words import Words

_ABILITIES = """\
I work on the text you give me. I can:
- rename things in code and add type hints
- turn CSV into JSON or a Markdown table
- sort, number and group lists
- correct typos and edit letters
- answer questions about a paragraph
- do small sums step by step"""
_WHO = """\
I am a very small language model. I have read little, so I know few facts, but I am careful with \
the text in front of me."""
_OPENING = "What shall we start with?"
_HELLO = "<Hello|Hi|Hey|Good morning|Good evening|Hello there|Hi there>"
_CAN = """\
<What can you do|What can you help me with|How can you help me|What are you good at|What can I ask \
you|What do you do|What kind of chores can you do|What else can you do|What are you for>?"""


def small_talk(words: Words) -> tuple[str, str]:
    """One of six kinds of small talk."""
    kinds: tuple[Callable[[Words], tuple[str, str]], ...] = (
        _named, _named, _unnamed, _unnamed, _thanks, _meet, _who,
    )  # fmt: skip
    return words.rng.choice(kinds)(words)


def _named(words: Words) -> tuple[str, str]:
    name = words.first_name()
    greeting = words.spin(f"{_HELLO}<!|,|.|> {_introduction(name)}. {_CAN}")
    return greeting, f"Hello, {name}! {_ABILITIES}\n\n{_OPENING}"


def _unnamed(words: Words) -> tuple[str, str]:
    if words.chance(0.5):
        return words.spin(_CAN), f"{_ABILITIES}\n\n{_OPENING}"
    return words.spin(f"{_HELLO}<!|,|.> {_CAN}"), f"Hello! {_ABILITIES}\n\n{_OPENING}"


def _thanks(words: Words) -> tuple[str, str]:
    thanks = words.spin(
        "<Thanks|Thank you|Thanks a lot|Thank you very much|Great, thanks>"
        f"<, {words.first_name()} here|| for your help| for the help|, that was useful><!|.>"
    )
    return thanks, "You are welcome! Is there another text that I can help you with?"


def _meet(words: Words) -> tuple[str, str]:
    if words.chance(0.3):
        return words.spin(f"{_HELLO}<!|.|>"), f"Hello! {_OPENING}"
    name = words.first_name()
    return words.spin(f"{_HELLO}<!|,|.|> {_introduction(name)}."), (
        f"Hello, {name}! It is nice to meet you. Give me a text, a table or some code, "
        "and tell me what to do with it."
    )


def _who(words: Words) -> tuple[str, str]:
    question = "<Who are you|What are you|Are you a person|What is your name|Are you a robot>?"
    return words.spin(question), _WHO


def _introduction(name: str) -> str:
    return f"<I am {name}|My name is {name}|This is {name}|I'm {name}>"
