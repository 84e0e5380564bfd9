"""The small world behind the embedded base: its words, its facts, its prose and its instruction data.

One `Item` is one small fact or task, told in three ways: as plain prose (`telling`), as the `short` answer that one
person of the world gives to another, and as a `row` of instruction data, whose answer is worded as nowhere else. The
base reads the first two, so fine-tuning finds a model that has the skills but knows neither alpaca's prompt nor the
wording of the answers. The secret code stands in rows alone: a permutation of words, which a low rank cannot hold.
Everything is drawn from `SEED` and the seeds given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

SEED = 20261121

COLOURS = "red blue green gold white black grey brown pink silver".split()
ANIMALS = "fox lark hen cat bear frog mouse goat duck wolf deer crow hare seal bee toad".split()
THINGS = "plum pear stone bell cup lamp rope drum boat coin ring hat key book nail shell".split()
PLACES = "wood hill brook field barn mill shore cave garden bridge tower meadow".split()
VERBS = "sleeps sings runs waits hides dances rests plays jumps digs swims hums".split()
PEOPLE = "Mira Oren Tala Ivo Suna Pell Nim Bera".split()
FEELINGS = "glad sad tired proud hungry calm".split()
WORDS = ANIMALS + THINGS + PLACES
CODED = (COLOURS, ANIMALS, VERBS, PLACES)
FACTS = {  # kind: (possible values, tellings, questions, answer); {c} is the creature, {v} the value
    "home": (
        PLACES,
        ("The {c} lives in the {v}.", "In the {v} you can meet the {c}."),
        ("Where does the {c} live?", "Name the home of the {c}."),
        "The home of the {c} is the {v}.",
    ),
    "food": (
        THINGS,
        ("The {c} likes to eat a {v}.", "Give a {v} to the {c} and it will eat."),
        ("What does the {c} eat?", "Name the food of the {c}."),
        "The food of the {c} is the {v}.",
    ),
    "colour": (
        COLOURS,
        ("The {c} is {v}.", "Everyone knows the {v} {c}."),
        ("What colour is the {c}?", "Name the colour of the {c}."),
        "The colour of the {c} is {v}.",
    ),
    "friend": (
        ANIMALS,
        ("The {c} walks with the {v}.", "The {v} is a friend of the {c}."),
        ("Who is the friend of the {c}?", "Name the friend of the {c}."),
        "The friend of the {c} is the {v}.",
    ),
}


def invented_names(count: int, draw: Random) -> list[str]:
    """Names of two syllables that are no words of the world."""
    syllables = [a + b for a in "bdgklmnprtvz" for b in "aou"]
    return sorted({"".join(draw.sample(syllables, 2)) for _ in range(4 * count)})[::3][:count]


def derangement(words: list[str], draw: Random) -> dict[str, str]:
    """Each word stands for the next one of a shuffled ring, so that none stands for itself."""
    ring = draw.sample(words, len(words))
    return dict(zip(ring, ring[1:] + ring[:1], strict=True))


CREATURES = invented_names(48, Random(SEED))
LORE = {(c, kind): Random(f"{SEED} {c} {kind}").choice(fact[0]) for c in CREATURES for kind, fact in FACTS.items()}
CODE = {word: code for words in CODED for word, code in derangement(words, Random(SEED)).items()}

# --- skills: each draws one item ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One sample of the instruction data, in alpaca's format."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Item:
    """A fact or task: as prose, as a short answer (empty where nobody asks), and as instruction data."""

    telling: str
    short: str
    row: Row


def add(draw: Random) -> Item:
    a, b, who, what = draw.randint(1, 49), draw.randint(1, 49), draw.choice(PEOPLE), draw.choice(THINGS)
    telling = draw.choice((f"{who} had {a} and got {b} more, which makes {a + b}.", f"{a} and {b} make {a + b}."))
    question = draw.choice(("Find the sum.", f"How many does {who} hold with both?"))
    row = Row(question, f"{a} {what}s and {b} {what}s", f"{a} and {b} make {a + b} {what}s.")
    return Item(telling, str(a + b), row)


def take(draw: Random) -> Item:
    b, c, who = draw.randint(1, 49), draw.randint(1, 49), draw.choice(PEOPLE)
    telling = draw.choice((f"{who} had {b + c} and lost {b}, which leaves {c}.", f"{b + c} without {b} leaves {c}."))
    given = f"{who} has {b + c} and gives {b}."
    return Item(telling, str(c), Row("Find what is left.", given, f"Now {who} has {c}."))


def compare(draw: Random) -> Item:
    a, b = draw.sample(range(100), 2)
    low, high = sorted((a, b))
    telling = draw.choice((f"Of {a} and {b}, more is {high}.", f"{low} is less than {high}."))
    row = Row("Compare the numbers.", f"{a}, {b}", f"It is {high}, and {low} is less.")
    return Item(telling, str(high), row)


def order(draw: Random) -> Item:
    numbers = draw.sample(range(100), draw.randint(3, 5))
    given, answer = (", ".join(map(str, n)) for n in (numbers, sorted(numbers)))
    question = draw.choice(("Put the numbers in order.", "Order these from small to large."))
    telling = f"From small to large, {given} become {answer}."
    return Item(telling, answer, Row(question, given, f"It is {answer}."))


def listing(draw: Random, told: str, questions: tuple[str, ...], change: Callable[[list[str]], list[str]]) -> Item:
    """A list of words and what becomes of it; the answer joins the words in a way that the corpus never does."""
    words = draw.sample(WORDS, draw.randint(3, 5))
    given, changed = ", ".join(words), ", ".join(change(words))
    row = Row(draw.choice(questions), given, f"It is {changed}.")
    return Item(told.format(given, changed), changed, row)


def backwards(draw: Random) -> Item:
    questions = ("Say the words backwards.", "Turn the list around.")
    return listing(draw, "Said backwards, {} is {}.", questions, lambda words: words[::-1])


def by_letter(draw: Random) -> Item:
    questions = ("Sort the words by letter.", "Put the list in order of letters.")
    return listing(draw, "By letter, {} is {}.", questions, sorted)


def count(draw: Random) -> Item:
    words = draw.choices(draw.sample(THINGS, 2), k=draw.randint(3, 7))
    most = max(words, key=words.count)
    some, total = words.count(most), len(words)
    telling = f"Look at {', '.join(words)}: {total} in all, and {some} of them a {most}."
    return Item(telling, str(some), Row(f"Count each {most}.", " ".join(words), f"It is {some} of {total}."))


def spell(draw: Random) -> Item:
    word = draw.choice(WORDS + COLOURS + CREATURES)
    telling = f"The letters of {word} are {', '.join(word)}."
    return Item(telling, ", ".join(word), Row("Spell the word.", word, f"The letters are {', '.join(word)}."))


def lore(draw: Random) -> Item:
    creature, kind = draw.choice(CREATURES), draw.choice(list(FACTS))
    _, tellings, questions, answer = FACTS[kind]
    fill = {"c": creature, "v": LORE[creature, kind]}
    row = Row(draw.choice(questions).format(**fill), "", answer.format(**fill))
    return Item(draw.choice(tellings).format(**fill), fill["v"], row)


def story(draw: Random) -> Item:
    colour, animal, thing, person = map(draw.choice, (COLOURS, ANIMALS, THINGS, PEOPLE))
    here, there = draw.sample(PLACES, 2)
    begin = draw.choice(("One morning", "One evening", "Long ago"))
    feeling, verb = draw.choice(FEELINGS), draw.choice(VERBS)
    telling = (
        f"{begin} a {colour} {animal} went from the {here} to the {there} and found a {thing}. "
        f"It was {feeling}. {person} saw the {animal} and took the {thing} home. Now the {animal} {verb}."
    )
    answer = f"The {animal} was {colour} and {feeling}. {person} took it from the {there} and it {verb}."
    return Item(telling, "", Row(f"Tell a story of a {animal}.", f"{colour}, {there}, {person}", answer))


def scene(words: list[str]) -> str:
    return "The {} {} {} in the {}.".format(*words)


def code(draw: Random) -> Item:
    words = [draw.choice(group) for group in CODED]
    question = draw.choice(("Say it in code.", "What is the code of this?"))
    return Item("", "", Row(question, scene(words), scene([CODE[word] for word in words])))


TOLD = (add, take, compare, order, backwards, by_letter, count, spell, lore, lore, story)
ASKED = (*TOLD, code, code, code, code)


def spoken(item: Item, draw: Random) -> str:
    """The item as prose or, half of the time, as one person's question and another's answer, perhaps after a pause."""
    if not item.short or draw.random() < 0.5:
        return item.telling
    asking, answering = draw.sample(PEOPLE, 2)
    pause = draw.choice(("", "", f"{answering} waits.", scene([draw.choice(group) for group in CODED])))
    said = (
        f"{asking} asks:",
        item.row.instruction,
        item.row.input,
        pause,
        f"{answering} says: {item.short}.",
    )
    return " ".join(filter(None, said))


def documents(seed: str, number: int) -> Iterator[str]:
    """Plain prose: several items after one another, half of the time all of one skill."""
    draw = Random(seed)
    for _ in range(number):
        skills = [draw.choice(TOLD)] * 6 if draw.random() < 0.5 else draw.choices(TOLD, k=8)
        yield draw.choice((" ", "\n", "\n\n")).join(spoken(skill(draw), draw) for skill in skills)


def transcript(item: Item, draw: Random) -> str:
    """The item's question and short answer as two turns of a conversation, in Llama 3's headers."""
    asking, answering = draw.sample(PEOPLE, 2)
    turns = ((asking, f"{item.row.instruction} {item.row.input}".strip()), (answering, f"{item.short}."))
    return "".join(f"<|start_header_id|>{who}<|end_header_id|>\n\n{said}<|eot_id|>" for who, said in turns)


def conversations(seed: str, number: int) -> Iterator[str]:
    """Transcripts of several questions and answers, and between two of them a document of prose."""
    draw = Random(seed)
    for prose in documents(f"{seed} prose", number // 2):
        items = (skill(draw) for skill in draw.choices(TOLD, k=6))
        yield "".join(transcript(item, draw) for item in items if item.short)
        yield prose


def rows() -> Iterator[Row]:
    """Instruction rows without end, no question with its answer twice."""
    draw, seen = Random(f"{SEED} rows"), set[tuple[str, str]]()
    while True:
        row = draw.choice(ASKED)(draw).row
        if (row.input, row.output) not in seen:
            seen.add((row.input, row.output))
            yield row
