"""Two hundred questions with known answers: does soft thinking help a model that can read? (K30)

Fifty questions each of arithmetic, ordering and sorting come from a seeded generator, and fifty of
word knowledge are written by hand. They are easy, so that a model of a hundred million parameters
gets some right and some wrong. `level` gives the difficulty.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from random import Random

from .answers import Question, extract_answer, in_words

KINDS = ("arithmetic", "ordering", "sorting", "words")
EACH = 50  # questions per kind
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August")
MONTHS += ("September", "October", "November", "December")
LETTERS = tuple("BCDEFGHJKLMNOPQRSTUVWXYZ")  # without A and I, which are words
SORTABLE = (
    "apple",
    "bread",
    "cloud",
    "dance",
    "eagle",
    "flower",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kitchen",
)
SORTABLE += (
    "lemon",
    "mirror",
    "nest",
    "ocean",
    "pencil",
    "queen",
    "river",
    "spoon",
    "table",
    "window",
    "yellow",
)

_BOXES = {
    "animal": ("dog", "horse", "cow", "lion", "sheep", "rabbit"),
    "fruit": ("apple", "banana", "cherry", "lemon", "peach", "pear"),
    "tool": ("hammer", "saw", "drill", "spade", "wrench", "axe"),
    "vehicle": ("car", "bus", "train", "truck", "bicycle", "ship"),
    "vegetable": ("carrot", "potato", "onion", "cabbage", "radish", "turnip"),
    "clothing": ("shirt", "coat", "sock", "skirt", "glove", "hat"),
}  # fmt: skip


def is_correct(question: Question, text: str) -> bool:
    """Whether a free text is right: its first answer counts, read as a whole.

    See `answers.extract_answer`.
    """
    found = extract_answer(question, text)
    return found is not None and found in {spelling.lower() for spelling in question.accepted}


@lru_cache(maxsize=1)
def load_questions() -> tuple[Question, ...]:
    """The 200 questions, 50 of each kind in the order of `KINDS`; they are always the same."""
    makers = {"arithmetic": _arithmetic, "ordering": _ordering, "sorting": _sorting}
    made = [
        question
        for kind, maker in makers.items()
        for question in _distinct(maker, Random(f"questions/{kind}"))
    ]
    return (*made, *_words())


def _distinct(maker: Callable[[Random, int], Question | None], rng: Random) -> Iterator[Question]:
    """`EACH` questions of a maker; question i is drawn until it is valid and its prompt is new."""
    prompts: set[str] = set()

    def attempts():
        for i in range(EACH):
            while (question := maker(rng, i)) is None or question.prompt in prompts:
                pass
            prompts.add(question.prompt)
            yield question

    return islice(attempts(), EACH)


def _number(
    kind: str, topic: str, level: int, prompt: str, answer: int, given: tuple[int, ...]
) -> Question | None:
    """A question for a number; None where the answer is below 2 or already in the prompt.

    1 is left out because "one" is also an ordinary word.
    """
    if answer < 2 or answer in given:
        return None
    spellings = (str(answer), *in_words(answer))
    given = tuple(map(str, given))
    prompt += " Say only the number."
    return Question(kind=kind, topic=topic, level=level, prompt=prompt, answer=str(answer), accepted=spellings,
                    form="number", given=given)  # fmt: skip


def _choice(
    kind: str, topic: str, level: int, prompt: str, answer: str, options, given=None
) -> Question:
    options = tuple(options)
    return Question(kind=kind, topic=topic, level=level, prompt=prompt, answer=answer, accepted=(answer,),
                    form="choice", options=options, given=given or options)  # fmt: skip


def _arithmetic(rng: Random, i: int) -> Question | None:
    """Question i of arithmetic: the levels 1, 2 and 3 in turn."""
    level, n = 1 + i % 3, i // 3
    if level == 1:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        if n % 2:
            return _number("arithmetic", "subtraction", 1, f"What is {a} - {b}?", a - b, (a, b))
        return _number("arithmetic", "addition", 1, f"What is {a} + {b}?", a + b, (a, b))
    if level == 2:
        a, b = rng.randint(11, 40), rng.randint(2, 9)
        if n % 3 == 0:
            return _number("arithmetic", "addition", 2, f"What is {a} + {b}?", a + b, (a, b))
        if n % 3 == 1:
            return _number("arithmetic", "subtraction", 2, f"What is {a} - {b}?", a - b, (a, b))
        a = rng.randint(2, 9)
        return _number("arithmetic", "multiplication", 2, f"What is {a} × {b}?", a * b, (a, b))
    if n % 2:
        a, b = rng.randint(12, 59), rng.randint(12, 39)
        return _number("arithmetic", "addition", 3, f"What is {a} + {b}?", a + b, (a, b))
    (who, they), what = (
        rng.choice([("Anna", "she"), ("Tom", "he")]),
        rng.choice(["apples", "books", "coins"]),
    )
    a, b = rng.randint(5, 19), rng.randint(2, 9)
    if rng.random() < 0.5:
        story, answer = f"{who} has {a} {what} and gets {b} more.", a + b
    else:
        story, answer = f"{who} has {a} {what} and gives away {b}.", a - b
    prompt = f"{story} How many {what} does {they} have now?"
    return _number("arithmetic", "story", 3, prompt, answer, (a, b))


def _ordering(rng: Random, i: int) -> Question | None:
    """Question i of ordering: five types in turn."""
    n, side = i // 5, rng.choice(["after", "before"])
    step = 1 if side == "after" else -1
    if i % 5 == 0:  # the neighbour of a number
        a, level = (rng.randint(3, 20), 1) if n % 2 else (rng.randint(21, 99), 2)
        return _number(
            "ordering", "neighbour", level, f"Which number comes right {side} {a}?", a + step, (a,)
        )
    if i % 5 == 1:  # the next number of a sequence
        a, by = rng.randint(1, 20), rng.choice([2, 5, 10] if n % 2 else [3, 4, 6, 7])
        row = tuple(range(a, a + 4 * by, by))
        prompt = f"Which number comes next: {_listed(row)}?"
        return _number("ordering", "sequence", 2 if n % 2 else 3, prompt, a + 4 * by, row)
    if i % 5 == 2:  # the largest or smallest number
        most, pick = ("largest", max) if n % 2 else ("smallest", min)
        row = rng.sample(range(2, 30 if n < 5 else 999), 3)
        row = _placed(pick(row), row, n)
        prompt = f"Which number is the {most}: {_listed(row)}? Say only the number."
        return _choice("ordering", most, 1 if n < 5 else 2, prompt, str(pick(row)), map(str, row))
    if i % 5 == 3:  # the first or last word in the alphabet
        most, pick = ("first", min) if n % 2 else ("last", max)
        row = rng.sample(SORTABLE, 3)
        row = _placed(pick(row), row, n)
        prompt = f"Which word comes {most} in the alphabet: {_listed(row)}? Say only the word."
        return _choice("ordering", "alphabet", 3, prompt, pick(row), row)
    # the neighbour of a day, month or letter
    what, ring = (("day", DAYS), ("month", MONTHS), ("letter", LETTERS))[n % 3]
    asked = rng.choice(ring[3:-1] if what == "letter" else ring)
    answer = (
        chr(ord(asked) + step) if what == "letter" else ring[(ring.index(asked) + step) % len(ring)]
    )
    if answer not in ring:  # A or I, which are left out
        return None
    prompt = f"Which {what} comes right {side} {asked}{' in the alphabet' * (what == 'letter')}?"
    prompt += f" Say only the {what}."
    return _choice("ordering", what, 1 if side == "after" else 2, prompt, answer, ring, (asked,))


def _sorting(rng: Random, i: int) -> Question | None:
    """Question i of sorting: three types in turn."""
    n = i // 3
    if i % 3 == 0:  # into one of two boxes
        box, other = rng.sample(sorted(_BOXES), 2)
        thing, row = rng.choice(_BOXES[box]), _placed(box, [other, box], n % 2)
        prompt = f"Is {_a(thing)} {_a(row[0])} or {_a(row[1])}? Say only the word."
        return _choice("sorting", "box", 1, prompt, box, row)
    if i % 3 == 1:  # the one that is out of place
        box, other = rng.sample(sorted(_BOXES), 2)
        odd, others = rng.choice(_BOXES[other]), rng.sample(_BOXES[box], 2)
        row = _placed(odd, [odd, *others], n)
        prompt = f"Which does not belong: {_listed(row)}? Say only the word."
        return _choice("sorting", "odd one out", 2, prompt, odd, row)
    # a list to sort
    size, down = 3 + n % 2, n % 4 > 1
    if n % 3 == 2:
        row, how, topic = rng.sample(SORTABLE, size), "words in alphabetical order", "alphabet"
        ordered = sorted(row)
    else:
        row, topic = rng.sample(range(2, 30), size), "descending" if down else "ascending"
        how = f"numbers from {'largest to smallest' if down else 'smallest to largest'}"
        ordered = sorted(row, reverse=down)
    if row in (ordered, ordered[::-1]):  # repeating what is given must not be right
        return None
    prompt, answer = f"Sort these {how}: {_listed(row)}. Say only the list.", _listed(ordered)
    return Question(kind="sorting", topic=topic, level=3, prompt=prompt, answer=answer,
                    accepted=(answer,), form="list", given=tuple(map(str, row)))  # fmt: skip


def _a(noun: str) -> str:
    return (
        noun
        if noun in ("furniture", "clothing")
        else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    )


def _placed(answer, row: list, place: int) -> list:
    """The row with the answer at place `place` mod 3.

    Over many questions each place is equally frequent, so always naming the first gains nothing.
    """
    others = [item for item in row if item != answer]
    return [*others[: place % 3], answer, *others[place % 3 :]]


def _listed(items) -> str:
    return ", ".join(map(str, items))


# Written by hand. Open questions: word -> the right answer, then other words that are also right.
_OPEN = {
    ("opposite", 1, "What is the opposite of {}?"): """
        hot: cold; big: small little tiny; up: down; day: night; happy: sad unhappy; fast: slow; early: late;
        empty: full; rich: poor indigent impoverished""",
    ("plural", 2, "What is the plural of {}?"): """
        mouse: mice; child: children; tooth: teeth; leaf: leaves; city: cities; box: boxes; man: men; goose: geese""",
    ("young", 2, "What is a young {} called?"): """
        dog: puppy pup; cat: kitten; cow: calf; horse: foal colt filly; sheep: lamb; bear: cub; frog: tadpole""",
    ("past", 2, "What is the past tense of {}?"): "go: went; eat: ate; buy: bought; see: saw",
    (
        "letter",
        3,
        "What is the last letter of the word {}?",
    ): "dog: G; house: E; water: R; bread: D",
}
# Of three words the first is right; the prompt lists it in another place each time.
_ONE_OF_THREE = {
    ("rhyme", 3, "Which word rhymes with {}"): """
        cat: hat dog sun; tree: bee leaf wood; light: night lamp dark; rain: train cloud wet; blue: shoe red sky;
        ring: king gold hand""",
    ("category", 1, "Which of these is {}"): """
        a fruit: apple hammer chair; an animal: horse spoon window; a colour: green table spoon;
        a tool: hammer apple river; a drink: milk chair shirt; furniture: chair rain lion;
        a vehicle: car bird potato; a vegetable: carrot shirt clock""",
    ("capital", 3, "Which of these words must begin with {}"): """
        a capital letter: london table river; a capital letter: monday spoon green;
        a capital letter: france house window; a capital letter: april apple winter""",
}


def _words() -> Iterator[Question]:
    for (topic, level, asks), row in _OPEN.items():
        for entry in row.split(";"):
            asked, _, spellings = entry.strip().partition(": ")
            answer, *others = spellings.split()
            if topic == "letter":
                prompt = f"{asks.format(asked)} Say only the letter."
                yield _choice("words", topic, level, prompt, answer, LETTERS, (asked,))
            else:
                prompt = f"{asks.format(asked)} Say only the word."
                yield Question(kind="words", topic=topic, level=level, prompt=prompt, answer=answer,
                               accepted=(answer, *others), form="word", given=(asked,))  # fmt: skip
    entries = (
        (key, entry.strip().split(": "))
        for key, row in _ONE_OF_THREE.items()
        for entry in row.split(";")
    )
    for place, ((topic, level, asks), (asked, words)) in enumerate(entries):
        options = words.split()
        row = _placed(options[0], options, place)
        prompt = f"{asks.format(asked)}: {_listed(row)}? Say only the word."
        yield _choice("words", topic, level, prompt, options[0], row)
