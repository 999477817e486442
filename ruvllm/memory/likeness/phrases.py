"""Words and turns of phrase that mean one thing, and those that turn a meaning, as data. Knows nothing of texts.

Only what is one in every sentence stands here: "who wrote" and "the author of" do, "capital" and "largest city" do not.
"""

from __future__ import annotations

# Words that say nothing of what is asked. No "who", "when", "how", "not", "to" or "from": those do; nor "was": a king
# of today is not one of then.
NEUTRAL = frozenset(("a an the is are of what which do does please tell me give").split())  # noqa: SIM905
FILLER = NEUTRAL | frozenset(
    "exactly actually really currently current today now nowadays altogether there has have".split()  # noqa: SIM905
)

# Small words that open a sentence with a capital and are no names.
OPENING = FILLER | frozenset(
    (  # noqa: SIM905
        "who whom whose when where why how in on at by for from to with about during after before since until under"
        " over between among it its they their this that these those he she his her we you your i my our if as and or"
        " but so was were had did can could will would shall should may might must not no name list people number most"
        " some many all each every one two three four five six seven eight nine ten say explain let according"
    ).split()
)

# Lower-case words that turn a statement's meaning as a number would.
TELLING = frozenset(
    (  # noqa: SIM905
        "not no never without nor neither none nobody nothing nowhere cannot hardly barely rarely seldom except unless"
        " unable impossible false fail fails failed refuse refused deny denied lack lacks lacked hundred thousand"
        " million billion trillion two three four five six seven eight nine ten eleven twelve dozen half double twice"
        " first second third fourth fifth last more less most least fewer before after since until above below over"
        " under north south east west northern southern eastern western import imports imported export exports exported"
        " minimum maximum highest lowest largest smallest biggest longest shortest oldest youngest newest richest"
        " poorest tallest male female men women boys girls birth death births deaths born died increase increased"
        " decrease decreased rise rose fall fell win won lose lost buy bought sell sold open opened close closed begin"
        " began end ended start started stop stopped allowed permitted legal lawful forbidden prohibited banned illegal"
        " unlawful urban rural mother father son daughter husband wife brother sister"
    ).split()
)

# What is done to a thing or what one is to it: two texts that each name one, and not the same, are of two facts.
DEEDS = frozenset(
    (  # noqa: SIM905
        "#write #invent #discover #paint #compose #lead #found #capital #currency #export #import #boil #melt #freeze"
        " composed composes sang sings painted invented discovered directed directs produced produces owns own owned"
        " runs run designed designs built builds destroyed conquered killed married voted elected played plays taught"
        " teaches teach studied adopted abolished signed banned taxed hunted climbed visited located buried crowned"
        " appointed arrested succeeded preceded president minister mayor governor king queen general captain coach"
        " owner founder director producer architect constitution anthem flag independence"
    ).split()
)

# Turns of phrase -> what they say, as concepts (#) and words.
_GROUPS = (
    ": can you tell me, could you tell me, do you know, i would like to know, i want to know, i wonder, would you say",
    "#count: how many, number of, total number of, count of",
    "#people: people, inhabitants, residents, people live in, people lived in, people living in, people are living in,"
     " people are there in, people reside in, people in, inhabitants in, residents in, inhabitants live in",
    "#count #people: population, population size, inhabited by, home to",
    "#who #write: who wrote, author of, who authored",
    "#write: wrote, written by, was written by",
    "#who: who, whom, which person, what person, who is the person who, who is the person that, by whom",
    "#who #invent: who invented, inventor of",
    "#who #discover: who discovered, discoverer of",
    "#who #paint: who painted, painter of",
    "#who #compose: who composed, composer of",
    "#who #lead: who leads, leader of, who is in charge of",
    "#found: founded, established, set up",
    "#when: when, in what year, in which year, what year, which year, on what date, on which date, what date,"
     " what is the year in which, what is the year when",
    "#where: where, in what place, in which place, at what place, in which location, location of",
    "#height: how tall, how high, height of, height",
    "metres #height: metres tall, metres high, meters tall, meters high, metres in height",
    "#length: how long, length of, length",
    "kilometres #length: kilometres long, kilometers long, km long, kilometres in length",
    "kilometres: km, kilometers",
    "metres: meters",
    "#depth: how deep, depth of, depth",
    "#area: how large, how big, area of, area, surface area, land area, surface area of, land area of",
    "#weight: how heavy, weight of, weight, how much does it weigh",
    "#age: how old, age of, age",
    "#speed: how fast, speed of, speed",
    "#distance: how far, distance of, distance",
    "#capital: capital, capital city, seat of government",
    "#currency: currency, unit of currency, monetary unit, kind of money, money is used in, currency is used in,"
     " currency used in, money used in, currency in",
    "#speak #language: language is spoken in, languages are spoken in, language do people speak in,"
     " languages do people speak in, language spoken in, languages spoken in",
    "#export: exports, export, sells abroad, sell abroad, goods sold abroad by",
    "#import: imports, import, buys abroad, buy abroad, goods bought abroad by",
    "#boil: boiling point of, boiling point, boils, boil",
    "#melt: melting point of, melting point, melts, melt",
    "#freeze: freezing point of, freezing point, freezes, freeze",
    "#border: borders, border, share a border with, shares a border with",
    "in: in the year, in year",
    "#at: at what temperature, at which temperature",
    "#mean: what does stand for, stand for, stands for, meaning of, mean, means, short for",
    "#why: why, for what reason, reason for, how come",
    "#gdp: gdp, gross domestic product",
    "#usa: usa, united states, united states of america",
    "#uk: uk, united kingdom",
    "#percent: %, percent, per cent",
    "#film: film, movie, motion picture",
    "#allowed: allowed, permitted, legal, lawful",
    "#forbidden: forbidden, prohibited, banned, illegal, unlawful",
    "#largest: largest, biggest",
)  # fmt: skip

# What a concept says anyway: "at what temperature does it boil" asks for the boiling point.
IMPLIED = {
    "#boil": frozenset({"#at", "at"}),
    "#melt": frozenset({"#at", "at"}),
    "#freeze": frozenset({"#at", "at"}),
    "#export": frozenset({"goods"}),
    "#import": frozenset({"goods"}),
    "#capital": frozenset({"city"}),
}


def _table() -> dict[tuple[str, ...], tuple[str, ...]]:
    """What each phrase says, both as words."""
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for line in _GROUPS:
        concepts, phrases = line.split(": ", 1)
        found |= {tuple(phrase.split()): tuple(concepts.split()) for phrase in phrases.split(", ")}
    return found


CONCEPTS = _table()
FIRST_WORDS = frozenset(phrase[0] for phrase in CONCEPTS)
LONGEST = max(map(len, CONCEPTS))  # words of the longest phrase
TELLING_CONCEPTS = TELLING | frozenset(" ".join(CONCEPTS[(word,)]) for word in TELLING if (word,) in CONCEPTS)
