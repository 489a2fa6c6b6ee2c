"""Word pools of the chores: lists of plain words, and makers of words nobody has seen.

Every pool is cut in two by a checksum of the word: one word in eight is kept for held-out
chores and never occurs in a training chore.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from keyword import iskeyword
from pathlib import Path
from zlib import crc32


def pool(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


FIRST_NAMES = pool(
    """
Ada Agnes Aisha Alba Albert Alice Alma Amara Amir Ana Anders Andrea Anna Anton Arjun Arlo Asha
Astrid Aurora Axel Bea Ben Bianca Bilal Boris Bruno Camila Carla Carlos Cecilia Chen Chiara
Clara Claude Colin Cora Dalia Damir Daniel Daria David Dembe Diana Diego Dina Dora Edith Edgar
Elena Elias Elif Elin Ella Elsa Emil Emma Enzo Erik Esther Eva Ewan Fatima Felix Fiona Flora
Frank Freya Gabriel George Gita Grace Greta Gustav Hana Hannah Hans Harper Hassan Hector Helen
Henrik Hugo Ibrahim Ida Ilse Imani Ines Ingrid Iris Isaac Ivan Jack Jade James Jamal Jan Jana
Jasper Joan Jonas Jorge Josef Judith Julia Kai Karen Karim Kasper Kate Kenji Kira Klara Lara
Lars Laura Leah Leila Lena Leo Liam Lila Linda Linus Livia Lorenzo Lotte Lucas Lucia Luis Luna
Lydia Magnus Malik Mara Marco Maria Marta Martin Mateo Maya Mei Mia Mikael Mila Mina Miriam Mona
Nadia Naomi Nathan Nia Nils Nina Noah Noor Nora Olaf Olga Olive Omar Oscar Otto Owen Pablo Paula
Pavel Pedro Petra Philip Pia Priya Quentin Rafael Raj Ravi Rebecca Rhea Rita Robin Rosa Ruben
Ruth Sam Samira Sana Sandra Sara Sasha Saul Selma Silvia Simon Sofia Soren Stella Sven Tara
Tariq Tessa Theo Thomas Tilda Tobias Tom Uma Ursula Vera Victor Viktor Vincent Viola Walter
Wanda Wendy Willa Xenia Yara Yasmin Yuki Yusuf Zara Zelda Zoe
"""
)

LAST_NAMES = pool(
    """
Abbott Adler Ahmed Alder Almeida Anders Aoki Arden Baker Banerjee Barnes Becker Bell Berg
Bianchi Blake Bloom Borg Brandt Brook Brown Burke Carter Castro Chandra Chen Clark Cole Conti
Cooper Costa Cruz Dahl Dalton Danek Davies Diaz Dixon Doyle Drake Duarte Dunn Eliot Ellis Engel
Evans Farrow Fischer Flynn Fontana Foster Fox Frost Garcia Gibson Grant Gray Green Gupta Haas
Hale Hansen Hardy Hart Hayes Hill Hoffman Holm Hughes Ito Jansen Jones Kaur Keller Kelly Kent
Khan Kim Klein Kovac Kruger Lang Larsen Lee Lewis Lind Lopez Lowe Lund Marsh Mason Mehta Meyer
Miller Mills Moreau Moreno Morgan Moss Mueller Nakamura Nash Nolan Norris Novak Nunez Olsen
Okafor Owens Page Park Patel Pereira Perry Petrov Porter Price Quinn Ramos Reed Reyes Rhodes
Ricci Rivera Ross Rossi Rowe Ryan Sato Schmidt Sharma Shaw Silva Singh Sloan Smith Sousa Stone
Strand Suzuki Tanaka Taylor Torres Turner Vance Vargas Vega Vogel Wagner Walsh Ward Watts Weber
Wells West White Wong Wood Wright Yang Young Zhang Ziegler
"""
)

CITIES = pool(
    """
Aarhus Accra Adelaide Amman Ankara Antwerp Athens Auckland Austin Baku Bari Basel Beirut Bergen
Berlin Bern Bilbao Bogota Bologna Bonn Boston Bremen Brno Bruges Brussels Cadiz Cairo Calgary
Cardiff Chicago Cologne Cordoba Cork Dakar Dallas Delft Delhi Denver Derby Dublin Durban Essen
Exeter Geneva Genoa Ghent Gdansk Graz Hanoi Havana Helsinki Houston Istanbul Izmir Jakarta Kobe
Krakow Kyiv Kyoto Lagos Leeds Leipzig Lille Lima Lisbon Ljubljana London Lucerne Lyon Madrid
Malaga Malmo Manila Miami Milan Mumbai Munich Nairobi Nantes Naples Nice Odense Osaka Oslo
Ottawa Oxford Palermo Paris Parma Perth Pisa Porto Prague Quito Rabat Riga Rome Rotterdam
Salzburg Santiago Seattle Seoul Seville Sofia Stockholm Sydney Tallinn Tampere Tokyo Toronto
Trieste Tunis Turin Turku Utrecht Valencia Vienna Vilnius Warsaw Wells York Zagreb Zurich
"""
)

NOUNS = pool(
    """
apple anchor arrow bag ball basket battery bell belt bench bicycle blanket board boat book boot
bottle bowl box bread brick bridge broom brush bucket button cable cake camera candle card
carpet chain chair cheese clock coat coin comb cookie cord cork cup curtain desk dish doll door
dress drill drum engine envelope fan feather fence file flag flask flower flute folder fork
frame garlic gate glass globe glove grape guitar hammer hat helmet honey hook hose jacket jar
jug kettle key kite knife ladder lamp leaf lemon lens letter lock magnet map marble mask match
medal melon mirror motor mug nail napkin needle net notebook oar onion orange oven paddle paint
pan panel paper parcel pearl pebble pen pencil pepper piano pillow pin pipe plate plum pocket
poster pot potato printer pump purse puzzle quilt radio rake ribbon ring rope ruler saddle sail
salt sandal saw scarf screen screw shelf shell shirt shoe shovel sign soap sock sofa speaker
spoon spring stamp stone stool stove string suitcase sugar table tape teapot tent ticket tie
tile timer toast tomato torch towel toy tray tripod trumpet tube umbrella vase vest violin
wallet watch wheel whistle window wire wool wrench zipper
"""
)

ADJECTIVES = pool(
    """
amber black blue brass bright broad brown calm clean clear cold cotton dark deep dry early empty
fine flat fresh full glass gold grand green grey heavy high hollow iron large late leather light
linen little local long loud low main narrow new north old open orange oval paper pink plain
plastic purple quick quiet rare red rough round short silent silver simple slow small smooth
soft south spare steel striped strong sweet tall thick thin tiny warm white wide wild wooden
yellow young
"""
)

STEMS = pool(
    """
account active address alpha amount area array average balance base batch best block board bonus
book bound box branch bucket budget buffer byte cache call card cart case cell change char chunk
city client clock code color column cost count current cursor data date day debt delay
delta depth digit discount distance draft edge entry error event extra factor feature field file
filter final first flag flow folder frame fuel gain game gap goal grade graph grid group guest
head heap height hidden high hour image index info inner input item job key label last layer
leaf left length level limit line link list load local log long loss low main map mark mask
match max mean member memo menu merge message meter min minute mode model month move name next
node note number offset old order outer output owner packet page pair part path peak phase pixel
place plan player point pool post power price prime prior quota range rank rate ratio raw record
region rest result right room root route row rule sale sample scale scan score seat
second seed segment sensor shape share shift side sign signal size skip slot sort source space
span speed split stack stage start state step stock store stream sum table tag target task tax
team temp term text tick time title token tool top total track tree trip type unit upper user
value vector version view visit volume vote wage wait walk weight width window word work year
zone
"""
)

MONTHS = pool(
    "January February March April May June July August September October November December"
)
DAYS = pool("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
COLOURS = pool("red blue green yellow white black grey brown pink purple orange silver gold")

_TOKENIZER = Path(__file__).parents[1] / "src/doublespec/pair/target/tokenizer.json"
_ALTERNATIVES = re.compile(r"<([^<>]*)>")
_ONSETS = pool(
    """
b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kn kr l m n p pl pr qu r s sc sh sk sl sm sn sp
st str t th tr v w wh y z zh
"""
)
_VOWELS = pool("a e i o u a e i o u ai ea ee io oa oo ou ia")
_CODAS = (*pool("l m n r s t k x d g p b f nd rt sk lm nt ck ss ll"), "", "", "", "")


@dataclass(frozen=True, slots=True)
class Words:
    """A source of words: only the free ones, or the kept ones of the held-out chores too."""

    rng: random.Random
    held_out: bool = False

    def spin(self, text: str) -> str:
        """The text with each `<a|b|c>` replaced by one of its alternatives, innermost first."""
        while found := _ALTERNATIVES.search(text):
            text = text.replace(found[0], self.rng.choice(found[1].split("|")), 1)
        return text

    def chance(self, probability: float) -> bool:
        """Whether an event of this probability happens."""
        return self.rng.random() < probability

    def pick(self, pool: tuple[str, ...]) -> str:
        """One word of a pool; a held-out source takes every other one from the kept words."""
        kept, free = split_pool(pool)
        return self.rng.choice(kept if self.held_out and self.rng.random() < 0.5 else free)

    def piece(self) -> str:
        """A word or part of a word from the tokenizer's vocabulary, one in four with an ending."""
        ending = self.rng.choice(("s", "s", "er", "ing", "ed")) if self.chance(0.25) else ""
        return self.rng.choice(vocabulary("[a-z]{3,}")) + ending

    def made_up(self) -> str:
        """A word of one to three syllables that is in no dictionary, such as `brolik`."""
        count = self.rng.choice((1, 2, 2, 2, 3))
        return "".join(self._syllable() for _ in range(count))

    def gibberish(self) -> str:
        """Three to seven random letters, such as `xqvtr`."""
        return "".join(
            self.rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(self.number(3, 7))
        )

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return self.rng.randint(low, high)

    def first_name(self) -> str:
        """A first name, one in twelve made up."""
        return self._mostly(FIRST_NAMES)

    def last_name(self) -> str:
        """A family name, one in twelve made up."""
        return self._mostly(LAST_NAMES)

    def full_name(self) -> str:
        """A first name and a family name."""
        return f"{self.first_name()} {self.last_name()}"

    def city(self) -> str:
        """A city, one in twelve made up."""
        return self._mostly(CITIES)

    def noun(self) -> str:
        """A thing one can buy or carry, in lower case; one in twenty made up."""
        return self.made_up() if self.rng.random() < 0.05 else self.pick(NOUNS)

    def thing(self) -> str:
        """A noun, often with an adjective before it; one in three is any piece."""
        noun = self.piece() if self.chance(0.35) else self.noun()
        return f"{self.pick(ADJECTIVES)} {noun}" if self.rng.random() < 0.4 else noun

    def code(self) -> str:
        """A short article or order number, such as `QX-482`."""
        letters = "".join(
            self.rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(self.number(1, 3))
        )
        digits = "".join(self.rng.choice("0123456789") for _ in range(self.number(2, 4)))
        return letters + self.rng.choice(("-", "", "-", "/")) + digits

    def date(self) -> str:
        """A day and a month, such as `14 May`."""
        return f"{self.number(1, 28)} {self.rng.choice(MONTHS)}"

    def iso_date(self) -> str:
        """A date as year-month-day."""
        return f"{self.number(1998, 2031)}-{self.number(1, 12):02d}-{self.number(1, 28):02d}"

    def clock(self) -> str:
        """A time of day on a quarter of an hour."""
        return f"{self.number(7, 20)}:{self.rng.choice(('00', '15', '30', '45'))}"

    def price(self) -> str:
        """A price with two decimals."""
        return f"{self.number(1, 99)}.{self.number(0, 99):02d}"

    def email(self) -> str:
        """A mail address at a made-up host."""
        end = self.rng.choice(("com", "org", "net", "io", "example"))
        return f"{self.first_name().lower()}@{self.made_up()}.{end}"

    def identifier(self) -> str:
        """A Python name: one to three stems, or a made-up word."""
        name = self._identifier()
        return name + "_" if iskeyword(name) else name

    def word(self) -> str:
        """Any lower-case word."""
        maker = self.rng.choice((self.made_up, self.noun, self.piece, self.piece, self.piece))
        return maker()

    def distinct(self, count: int, maker: Callable[[], str]) -> list[str]:
        """A list of `count` different words of one maker."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[maker()] = None
        return list(found)

    def _identifier(self) -> str:
        draw = self.rng.random()
        if draw < 0.45:
            return "_".join(self.piece() for _ in range(self.rng.choice((1, 1, 1, 2))))
        if draw < 0.48:
            return self.made_up() + self.rng.choice(("", "", "_" + self.pick(STEMS), "_2"))
        if draw < 0.5:
            return self.gibberish()
        return "_".join(self.pick(STEMS) for _ in range(self.rng.choice((1, 2, 2, 2, 3))))

    def _syllable(self) -> str:
        return self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS) + self.rng.choice(_CODAS)

    def _mostly(self, pool: tuple[str, ...]) -> str:
        draw = self.rng.random()
        if draw < 0.3:
            return self.rng.choice(vocabulary("[A-Z][a-z]{2,}"))
        return self.made_up().capitalize() if draw < 0.36 else self.pick(pool)


@cache
def vocabulary(pattern: str) -> tuple[str, ...]:
    """The words and parts of words of this form that are one token."""
    tokens = json.loads(_TOKENIZER.read_text())["model"]["vocab"]
    plain = {token.removeprefix("\u0120") for token in tokens}
    return tuple(sorted(word for word in plain if re.fullmatch(pattern, word)))


@cache
def split_pool(pool: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kept words of a pool and the free ones; a pool with no kept word gives all twice."""
    kept = tuple(word for word in pool if is_held_out(word))
    return kept or pool, tuple(word for word in pool if not is_held_out(word))


def is_held_out(word: str) -> bool:
    """Whether a pool's word is kept for held-out chores."""
    return crc32(word.encode()) % 8 == 0
