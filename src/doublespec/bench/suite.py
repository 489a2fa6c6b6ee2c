"""The built-in prompts of `doublespec bench`: written for it, by category, each a tuple of turns.

They ask for work on the text in front of the model, which small models can do too: a model that
only rambles repeats itself, and then retrieval looks better than it is.
"""

_FUNCTION = """\
def total_price(items, rate):
    subtotal = 0.0
    for item in items:
        subtotal += item.price * item.count
    if subtotal > 100:
        subtotal = subtotal * 0.95
    return subtotal + subtotal * rate"""

_CLASS = """\
class Counter:
    def __init__(self, start):
        self.value = start

    def add(self, amount):
        self.value += amount

    def reset(self):
        self.value = 0"""

_LOOP = """\
def find_names(rows, city):
    names = []
    for row in rows:
        if row["city"] == city:
            names.append(row["name"])
    return names"""

_LETTER = """\
Dear Ms Novak,

The order of 14 March has not arrived. We ordered 25 desk lamps and 4 shelves for the office in \
Graz. Please tell us until Friday when the lamps will be sent to Graz.

Kind regards,
Paul Adler"""

_MINUTES = """\
The group met on Monday at ten. Lena reported that the new printer is still broken and promised to \
call the shop by Wednesday. Omar has finished the price list; Ruth will check it before 8 May. The \
summer party was discussed for half an hour without a result. Victor offered to rent a room."""

_MUSEUM = """\
The Harbour Museum in Varde opened in 1962 in a former rope factory. It shows 40 model ships and a \
diving bell of 1881. The director is Ines Holm. Tickets cost 9 euros, for children 4 euros. The \
museum is open from 10:00 to 17:00 and closed on Mondays."""

_TRAIN = """\
The night train leaves Porto at 21:40 and reaches Madrid at 7:15. It has six carriages, two with \
beds. A bed costs 68 euros, a seat 31 euros. Dogs are allowed in carriage 6 only. The dining car \
closes at midnight."""

_STOCK = """\
item,stock,price
bolt,120,0.35
copper wire,18,7.90
lamp,42,12.50
hinge,200,1.10"""

_VISITORS = """\
name,city,age
Amara,Lisbon,34
Jonas,Tallinn,29
Yuki,Porto,51
Marta,Graz,44"""

_POEM = """\
The river carries leaves of gold,
the hills are quiet, grey and old,
a boat goes by without a sound,
and evening falls on all around."""


def _on(task: str, text: str) -> tuple[str, ...]:
    return (f"{task}\n\n{text}",)


def _code(task: str, code: str) -> tuple[str, ...]:
    return (f"{task}\n\n```python\n{code}\n```",)


SUITE: dict[str, tuple[tuple[str, ...], ...]] = {
    "chat": (
        ("Hello! I'm Jonas. What can you do for me?",),
        ("Good morning. Please introduce yourself in three sentences.",),
        ("I have a free afternoon and it rains. What could I do at home?",),
        ("Write a short birthday greeting for my colleague Amara.",),
        ("Can you explain to a child why we sleep?",),
        ("Thank you for your help yesterday! Say goodbye politely.",),
        ("Give me five tips for packing a suitcase.",),
    ),
    "arithmetic": (
        ("A shop sells 14 boxes with 12 pens each. Then 35 pens are returned. How many pens remain "
         "sold?",),
        ("Tomas fills 9 bags with 24 apples each and gives away 58 apples. How many apples are "
         "left?",),
        ("A bus has 52 seats. 17 people get on, then 9 more, then 6 get off. How many seats are "
         "free?",),
        ("Work out step by step: 36 x 7 - 48 + 15.",),
        ("Lena saves 45 euros a month for 8 months and then spends 125 euros. How much has she "
         "left?",),
        ("A rope of 96 metres is cut into 8 equal pieces. 3 pieces are sold. How many metres "
         "remain?",),
        ("There are 6 shelves with 18 books each. 29 books are lent out and 12 come back. How many "
         "books stand on the shelves?",),
        ("Add these numbers one after another: 17, 38, 45, 60, 83.",),
    ),
    "code": (
        ("Write a Python function that returns the largest number of a list.",),
        ("Write a Python function that counts the vowels of a text.",),
        ("Write a Python class Stack with push, pop and is_empty.",),
        ("Write SQL queries for a table orders(id, customer, city, total): 1. all orders of Graz, "
         "2. the sum of totals by city, 3. delete orders with a total of 0.",),
        _code("Write three tests for this function.", _LOOP),
        _code("Explain what this function does, line by line.", _FUNCTION),
        ("Write a Python function that reads a CSV file and returns a list of dictionaries.",),
    ),
    "code editing": (
        _code("Rename `subtotal` to `amount` in this function. Show the whole code.", _FUNCTION),
        _code("Add type hints and docstrings to this class. Show the whole code.", _CLASS),
        _code("Rename `value` to `count` in this class. Show the whole code.", _CLASS),
        _code("Add a method `subtract` to this class. Show the whole code.", _CLASS),
        _code("Rewrite the loop as a list comprehension. Show the whole code.", _LOOP),
        _code("Rename `rows` to `records` in this function. Show the whole code.", _LOOP),
        _code("Add a parameter `discount` with the default 0.95. Show the whole code.", _FUNCTION),
        _code("Add a comment above each line of this function.", _FUNCTION),
    ),
    "summarising": (
        _on("Summarise these notes as a list of tasks: who does what.", _MINUTES),
        _on("Summarise this text in two sentences.", _MUSEUM),
        _on("Give this text a title and three bullet points.", _TRAIN),
        _on("What does this letter ask for? One sentence.", _LETTER),
        _on("Shorten this text to half its length.", _MINUTES),
        _on("List the names in this text, one a line.", _MINUTES),
        _on("List all numbers in this text with what they mean.", _TRAIN),
    ),
    "question answering": (
        _on("When was the museum opened, and what was the house before?", _MUSEUM),
        _on("Answer from the text: who is the director, and how much is a ticket for a child?",
            _MUSEUM),
        _on("Answer from the text: when does the train reach Madrid, and where may dogs travel?",
            _TRAIN),
        _on("Which item has the lowest stock, and what does it cost?", _STOCK),
        _on("Who promised what until when? Quote the sentence for each answer.", _MINUTES),
        _on("How many desk lamps were ordered, and for which city?", _LETTER),
        _on("Who of these visitors is older than 40?", _VISITORS),
        _on("How much do two beds and one seat cost together?", _TRAIN),
    ),
    "copying": (
        _on("Replace Graz with Linz and 14 March with 2 June in this letter. Keep the rest.",
            _LETTER),
        _on("Show this CSV as a Markdown table.", _STOCK),
        _on("Turn this CSV into a JSON list of objects.", _VISITORS),
        _on("Write this poem in capital letters.", _POEM),
        _on("Number the lines of this poem.", _POEM),
        _on("Sort these rows by price, the dearest first, and keep the header.", _STOCK),
        _on("Turn each row into a sentence like: Amara from Lisbon is 34 years old.", _VISITORS),
        _on("Repeat this letter, and put a line of dashes before and after it.", _LETTER),
    ),
    "multi-turn": (
        ("Sort these words: pear, fig, apple, cherry.", "Now in the reverse order."),
        (f"Show this CSV as a Markdown table.\n\n{_VISITORS}",
         "Now add a column `visits` with 1 in every row."),
        (f"Rename `city` to `town` in this function. Show the whole code.\n\n```python\n{_LOOP}\n"
         "```", "Now rename `find_names` to `names_in`, too."),
        (f"Replace Paul Adler with Eva Brandt in this letter.\n\n{_LETTER}",
         "And now make it about 30 desk lamps."),
        ("Work out 15 x 6 + 20.", "And if you take away 35 from that?"),
        (f"Summarise this text in one sentence.\n\n{_MUSEUM}", "Now as three bullet points."),
        ("Hello, my name is Ruth.", "Can you write a limerick about me?"),
    ),
}  # fmt: skip
