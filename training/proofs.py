"""Chores on sentences with typing errors."""

import re

from training.tables import lay_out
from training.words import DAYS, Words, pool

_SENTENCES = (
    "<The|Our|My> {adjective} {noun} <is|was|stays|will be> <in|near|behind|under> the {noun2}",
    "<I|We|They> <bought|found|lost|need> <a|the|one> {adjective} {noun} <today|on {day}>",
    "<Please|Could you please> <bring|send|return> <the|my|your> {noun} <before|after|on> {day}",
    "The <meeting|lesson|concert|visit|lunch> <starts|begins> at {clock} <on {day}|tomorrow|again>",
    "{name} <lives|works|studies> in {city} <and likes it|since {month}|with {name2}>",
    "<The weather|The food> was <really|very|quite> <good|cold|nice|bad> <in {city}|on {day}>",
    "{name} <wants|hopes|plans|likes> to <visit|see|meet|call> {name2} <in {city}|soon|tomorrow>",
    "<We|They|My friends> <will|should|can> <receive|believe|remember|forget> the <answer|letter>",
    "There <is|was> <no|a> {noun} <in the {adjective} {noun2}|at the station|between the houses>",
    "The <government|library|school> <opened|closed|changed> <a|its> {adjective} <business|office>",
    "<Because|When> it was <late|early>, <{name}|we> <went|came> home <together|immediately>",
    "<Thank you|Thanks> for <the|your> <beautiful|different|interesting|necessary> {noun}",
    "{name} and {name2} <will|would|could> <bring|buy> the {adjective} {noun} <soon|on {day}>",
    "<In|Since> {month} {name} <is|works|lives> in {city} <again|with a friend|near the library>",
)
_MISTAKES = dict(
    pair.split(":")
    for pair in pool(
        """
the:teh and:adn with:wiht because:becuase receive:recieve believe:beleive friends:freinds
tomorrow:tommorow beautiful:beatiful different:diffrent interesting:intresting
necessary:neccessary address:adress government:goverment library:libary business:buisness
together:togehter immediately:immediatly remember:remeber forget:forgett letter:lettre
answer:anwser meeting:meetign school:shcool company:compnay station:staiton please:plaese
could:coudl would:woudl bought:bougth found:fuond need:nede weather:wether really:realy
very:vrey quite:qiute good:godo friend:freind before:befor after:aftre begins:beginns
starts:strats again:agian today:todya visit:vist hopes:hoeps plans:palns likes:liks works:wroks
lives:livs studies:studeis opened:opend closed:closd changed:chagned office:offcie
houses:huoses late:laet early:eraly home:hoem their:thier your:yuor was:wsa will:wil
should:shoud went:wnet came:caem lunch:lunhc concert:conert lesson:leson between:betwen
behind:behnid under:udner near:naer thank:thnak bring:brign send:sned return:retrun
"""
    )
)
_NOUNS = pool(
    "table chair door window garden letter book bottle kitchen bicycle basket camera lamp ticket "
    "umbrella wallet kettle mirror piano jacket blanket candle folder"
)


def mend_typos(words: Words) -> tuple[str, str]:
    """Sentences with typing errors."""
    right = " ".join(_sentence(words) for _ in range(words.number(2, 4)))
    wrong = re.sub(r"[a-z]+", lambda found: _mistake(words, found[0]), right)
    instruction = words.spin(
        "<Correct|Fix|Mend|Please correct|Please fix> <the spelling|the typos|all typos|"
        "the mistakes|the typing errors|the spelling mistakes> in "
        "<this text|this|the text|these sentences|this message><.|:|, please.>"
    )
    return lay_out(words, instruction, wrong), right


def _sentence(words: Words) -> str:
    nouns = words.distinct(2, lambda: words.pick(_NOUNS))
    names = words.distinct(2, words.first_name)
    filled = words.spin(words.rng.choice(_SENTENCES)).format(
        adjective=words.spin("<old|new|small|large|red|green|quiet|heavy>"),
        noun=nouns[0],
        noun2=nouns[1],
        name=names[0],
        name2=names[1],
        city=words.city(),
        day=words.rng.choice(DAYS),
        month=words.spin("<March|June|July|October|December>"),
        clock=words.clock(),
    )
    return filled[0].upper() + filled[1:] + "."


def _mistake(words: Words, word: str) -> str:
    if word in _MISTAKES and words.chance(0.5):
        return _MISTAKES[word]
    if word in _NOUNS and words.chance(0.3):
        at = words.number(1, len(word) - 2)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return words.rng.choice((swapped, word[:at] + word[at + 1 :], word[:at] + word[at - 1 :]))
    return word
