"""The built-in story language: short tales that end with a question about their facts.

Every tale has an exact probability. It has two characters, two things and some places. One to
three events change who holds what and who is where. The question at the end asks for one of these
facts. A predictor that remembers the facts knows the answer: it costs 0 bits.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import repeat
from math import fsum  # correctly rounded in every Python, unlike the built-in sum
from typing import NamedTuple

from .grammar import Choice, Grammar, GrammarLanguage
from .tales_world import ASKING, CHARACTERS, DWELLINGS, MOODS, OPENINGS, PLACES, THINGS, Story


class Turn(NamedTuple):
    """The grammar's state: the stage that continues the story, and the word just chosen.

    The stage adds this word to the story.
    """

    stage: str
    story: Story
    word: str = ""


def _even(texts: Iterable[str], turn: Turn) -> tuple[Choice, ...]:
    texts = tuple(texts)
    return tuple(Choice(text, 1 / len(texts), turn) for text in texts)


def _weighted(*options: tuple[str, float, Turn]) -> tuple[Choice, ...]:
    """Choices from (text, weight, turn); an option with weight 0 is left out."""
    total = fsum(weight for _, weight, _ in options)
    return tuple(Choice(text, weight / total, turn) for text, weight, turn in options if weight)


class _Drawn(NamedTuple):
    """Words to draw from: the text that each one writes, its probability, and the word itself."""

    texts: tuple[str, ...]
    probabilities: tuple[float, ...]
    words: tuple[str, ...]


@lru_cache(maxsize=4096)
def _drawn(
    form: str,
    words: tuple[str, ...],
    favourites: tuple[str, ...] = (),
    urgent: tuple[str, ...] = (),
    without: str = "",
) -> _Drawn:
    """All words except `without`, with their probabilities.

    Favourites share 60 %, and all words share the rest evenly. Urgent words, if there are any,
    share half of everything. The shares are those before `without` is removed.
    """
    weights = dict.fromkeys(words, 0.4 / len(words))
    for word in favourites:
        weights[word] += 0.6 / len(favourites)
    for word in urgent:
        weights[word] += 1 / len(urgent)
    weights.pop(without, None)
    total = fsum(weights.values())
    texts = tuple(form.format(word, at=PLACES.get(word)) for word in weights)
    return _Drawn(texts, tuple(weight / total for weight in weights.values()), tuple(weights))


def _pick(stage: str, story: Story, drawn: _Drawn) -> tuple[Choice, ...]:
    turns = map(Turn, repeat(stage), repeat(story), drawn.words)
    return tuple(map(Choice, drawn.texts, drawn.probabilities, turns))


def _pick_thing(stage: str, story: Story, owner: int, form: str, **rules) -> tuple[Choice, ...]:
    return _pick(stage, story, _drawn(form, THINGS, story.character(owner).role.things, **rules))


def _pick_place(stage: str, story: Story, owner: int, form: str, **rules) -> tuple[Choice, ...]:
    return _pick(
        stage, story, _drawn(form, tuple(PLACES), story.character(owner).role.places, **rules)
    )


# The opening introduces characters, places and things.


def _opening(story: Story, _: str) -> tuple[Choice, ...]:
    return _even(OPENINGS, Turn("hero", story))


def _hero(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick("dwelling", story, _drawn("{} ", CHARACTERS))


def _dwelling(story: Story, name: str) -> tuple[Choice, ...]:
    return _even(DWELLINGS, Turn("home", story._replace(who=(name,))))


def _home(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick_place("holding", story, 0, "{at} the {}. ")


def _holding(story: Story, place: str) -> tuple[Choice, ...]:
    _, he, his, _ = story.character(0)
    texts = (
        f"{he.capitalize()} had {his} ",
        f"{he.capitalize()} held the ",
        f"In {his} bag was the ",
    )
    return _even(texts, Turn("treasure", story._replace(at=(place,))))


def _treasure(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick_thing("entrance", story, 0, "{}. ")


def _entrance(story: Story, thing: str) -> tuple[Choice, ...]:
    return _even(
        ("Soon the ", "Then the ", "Now the "),
        Turn("guest", story._replace(things=(thing,), held=(0,))),
    )


def _guest(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick("origin", story, _drawn("{} ", CHARACTERS, without=story.who[0]))


def _origin(story: Story, name: str) -> tuple[Choice, ...]:
    story = story._replace(who=(*story.who, name))
    return _weighted(
        ("came from the ", 0.35, Turn("coming", story)),
        (f"came to {story.character(0).him} from the ", 0.35, Turn("coming", story)),
        ("was far away ", 0.3, Turn("staying", story)),
    )


def _coming(story: Story, _: str) -> tuple[Choice, ...]:
    here = story.at[0]  # the text names the guest's former place, but no question asks for it
    return _pick_place("carrying", story._replace(at=(here, here)), 1, "{} with ", without=here)


def _staying(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick_place("carrying", story, 1, "{at} the {} with ", without=story.at[0])


def _carrying(story: Story, place: str) -> tuple[Choice, ...]:
    at = (*story.at, place)[:2]
    return _even(("the ", f"{story.character(1).his} "), Turn("luggage", story._replace(at=at)))


def _luggage(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick_thing("introduced", story, 1, "{}. ", without=story.things[0])


def _introduced(story: Story, thing: str) -> tuple[Choice, ...]:
    return _next(story._replace(things=(*story.things, thing), held=(0, 1), subject=1))


# The events: every sentence begins at the stage `next`.


def _next(story: Story, _: str = "") -> tuple[Choice, ...]:
    sentences = story.events + story.moods
    mood = 0.3 if story.subject is not None and sentences < 3 else 0.0
    asking = ASKING[sentences] * (1 - mood) if story.events else 0.0  # only after an event
    acting = 1 - mood - asking if sentences < 3 else 0.0
    both = 0.2 * acting if story.together() else 0.0
    options = [
        ("They ", both, Turn("they", story._replace(subject=None))),
        (
            "Who has the ",
            asking * 0.4 if 0 in story.held or 1 in story.held else 0.0,
            Turn("who_has", story),
        ),
        ("Where is the ", asking * 0.35, Turn("where_is", story)),
        ("What does the ", asking * 0.25, Turn("what_has", story)),
    ]
    for index, name in enumerate(story.who):
        turn = Turn("verb", story._replace(subject=index))
        options += [
            (f"The {name} ", (acting - both) * 0.35, turn),
            (f"Then the {name} ", (acting - both) * 0.15, turn),
        ]
    if mood:
        options.append(
            (f"{story.character(story.subject).he.capitalize()} ", mood, Turn("mood", story))
        )
    return _weighted(*options)


def _mood(story: Story, _: str) -> tuple[Choice, ...]:
    his = story.character(story.subject).his
    return _even(
        (mood.format(his=his) for mood in MOODS),
        Turn("next", story._replace(subject=None, moods=story.moods + 1)),
    )


def _verb(story: Story, _: str) -> tuple[Choice, ...]:
    me, near = story.subject, story.together()
    return _weighted(
        ("went to the ", 3.0, Turn("went", story)),
        ("gave the ", 3.0 if near and story.having(me) else 0.0, Turn("gave", story)),
        ("took the ", 2.0 if near and story.having(1 - me) else 0.0, Turn("took", story)),
        ("found the ", 4.0 if story.having(story.at[me]) else 0.0, Turn("found", story)),
    )


def _handed(story: Story, things: tuple[str, ...], to: int, end: str) -> tuple[Choice, ...]:
    return _weighted(
        *((f"{thing}{end}. ", 1.0, Turn("next", story.given(thing, to))) for thing in things)
    )


def _gave(story: Story, _: str) -> tuple[Choice, ...]:
    me, you = story.subject, 1 - story.subject
    return _handed(story, story.having(me), you, f" to the {story.who[you]}")


def _took(story: Story, _: str) -> tuple[Choice, ...]:
    me, you = story.subject, 1 - story.subject
    return _handed(story, story.having(you), me, f" from the {story.who[you]}")


def _found(story: Story, _: str) -> tuple[Choice, ...]:
    return _handed(story, story.having(story.at[story.subject]), story.subject, "")


def _travel(stage: str, story: Story, traveller: int, form: str) -> tuple[Choice, ...]:
    """A place to go to, often where the other character is or a thing lies.

    Such places share about half of the probability, so that characters and things meet again.
    """
    here = story.at[traveller]
    urgent = {*story.at, *(holder for holder in story.held if holder in PLACES)} - {here}
    return _pick_place(stage, story, traveller, form, without=here, urgent=tuple(sorted(urgent)))


def _went(story: Story, _: str) -> tuple[Choice, ...]:
    return _travel("arrived", story, story.subject, "{}")


def _arrived(story: Story, place: str) -> tuple[Choice, ...]:
    me = story.subject
    story = story._replace(at=(story.at[0], place) if me else (place, story.at[1]))
    lose = [
        (f" and lost the {thing}. ", 1.0, Turn("next", story.given(thing, place)))
        for thing in story.having(me)
    ]
    find = [
        (f" and found the {thing}. ", 4.0, Turn("next", story.given(thing, me)))
        for thing in story.having(place)
    ]
    return _weighted((". ", 3.0, Turn("next", story.after_event())), *lose, *find)


def _they(story: Story, _: str) -> tuple[Choice, ...]:
    swap = 2.0 if set(story.held) == {0, 1} else 0.0
    swapped = Turn("next", story.after_event(held=story.held[::-1]))
    return _weighted(
        ("went to the ", 1.0, Turn("they_went", story)),
        ("swapped the {} and the {}. ".format(*story.things), swap, swapped),
    )


def _they_went(story: Story, _: str) -> tuple[Choice, ...]:
    return _travel("they_arrived", story, 0, "{}. ")


def _they_arrived(story: Story, place: str) -> tuple[Choice, ...]:
    return _next(story.after_event(at=(place, place)))


# The question; the facts determine its answer.


def _asked(answers: Iterable[tuple[str, str]]) -> tuple[Choice, ...]:
    """Choices from pairs (end of the question, answer)."""
    return _weighted(
        *((f"{end}? ", 1.0, Turn("answer", Story(), f"{answer}.\n")) for end, answer in answers)
    )


def _who_has(story: Story, _: str) -> tuple[Choice, ...]:
    return _asked(
        (thing, f"The {name}")
        for index, name in enumerate(story.who)
        for thing in story.having(index)
    )


def _where_is(story: Story, _: str) -> tuple[Choice, ...]:
    where = dict(zip(story.who, story.at, strict=True))
    for thing, holder in zip(story.things, story.held, strict=True):
        where[thing] = holder if holder in PLACES else story.at[holder]
    return _asked(
        (name, f"{PLACES[place].capitalize()} the {place}") for name, place in where.items()
    )


def _what_has(story: Story, _: str) -> tuple[Choice, ...]:
    answers = (
        " and ".join(f"the {thing}" for thing in story.having(index)) or "nothing"
        for index in (0, 1)
    )
    return _asked(
        (f"{name} have", answer.capitalize())
        for name, answer in zip(story.who, answers, strict=True)
    )


def _answer(_: Story, answer: str) -> tuple[Choice, ...]:
    return (Choice(answer, 1.0, None),)


_STAGES = {
    stage.__name__.removeprefix("_"): stage
    for stage in (
        *(_opening, _hero, _dwelling, _home, _holding, _treasure),
        *(_entrance, _guest, _origin, _coming, _staying, _carrying, _luggage, _introduced),
        *(
            _next,
            _mood,
            _verb,
            _gave,
            _took,
            _found,
            _went,
            _arrived,
            _they,
            _they_went,
            _they_arrived,
        ),
        *(_who_has, _where_is, _what_has, _answer),
    )
}
TALES = Grammar(Turn("opening", Story()), lambda turn: _STAGES[turn.stage](turn.story, turn.word))
"""The language itself: TALES.sample(rng) tells a story, TALES.log_prob(story) knows its probability."""

TALES_LANGUAGE = GrammarLanguage(
    TALES, "\n ,.:?ABHILNOSTWabcdefghijklmnopqrstuvwxyz", separator="\n"
)
"""The same as a predictor of token ids: the exact distribution of the next character of any stream of stories."""


class Parts(NamedTuple):
    """A story cut in three parts; joined, they give the story again."""

    facts: str
    question: str
    answer: str


def question_parts(document: str) -> Parts:
    """Cut a story into its facts, its question and its answer.

    The answer is "" where the story stops at the question mark.

    Raises:
        ValueError: where there is no question.
    """
    before, mark, answer = document.partition("? ")
    if not mark and not document.endswith("?"):
        raise ValueError(f"no question in {document!r}")
    start = before.rfind(". ") + 2 if ". " in before else 0
    return Parts(before[:start], before[start:] + mark, answer)


def answer(document: str) -> str:
    """The true answer to a story's question, such as "The queen.", from its facts alone.

    An answer in `document` is not read.

    Raises:
        ValueError: where there is no question, or the text up to its end is not a story of this
            language.
    """
    facts, question, _ = question_parts(document)
    return TALES.advance(TALES.start, f"{facts}{question.rstrip()} ").state.word.rstrip()
