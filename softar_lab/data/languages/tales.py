"""The built-in story language: short tales that end with a question about their facts.

Every tale has an exact probability. It has two characters, two things and some places. One to
three events change who holds what and who is where. The question at the end asks for one of these
facts. A predictor that remembers the facts knows the answer: it costs 0 bits.
"""

from collections.abc import Iterable
from typing import NamedTuple

from .grammar import Choice, Grammar, GrammarLanguage
from .tales_choices import Turn, drawn, even, pick, pick_place, weighted
from .tales_events import EVENTS, next_sentence
from .tales_world import CHARACTERS, DWELLINGS, OPENINGS, PLACES, THINGS, Story

# The opening introduces characters, places and things.


def _pick_thing(stage: str, story: Story, owner: int, form: str, **rules) -> tuple[Choice, ...]:
    return pick(stage, story, drawn(form, THINGS, story.character(owner).role.things, **rules))


def _opening(story: Story, _: str) -> tuple[Choice, ...]:
    return even(OPENINGS, Turn("hero", story))


def _hero(story: Story, _: str) -> tuple[Choice, ...]:
    return pick("dwelling", story, drawn("{} ", CHARACTERS))


def _dwelling(story: Story, name: str) -> tuple[Choice, ...]:
    return even(DWELLINGS, Turn("home", story._replace(who=(name,))))


def _home(story: Story, _: str) -> tuple[Choice, ...]:
    return pick_place("holding", story, 0, "{at} the {}. ")


def _holding(story: Story, place: str) -> tuple[Choice, ...]:
    _, he, his, _ = story.character(0)
    texts = (
        f"{he.capitalize()} had {his} ",
        f"{he.capitalize()} held the ",
        f"In {his} bag was the ",
    )
    return even(texts, Turn("treasure", story._replace(at=(place,))))


def _treasure(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick_thing("entrance", story, 0, "{}. ")


def _entrance(story: Story, thing: str) -> tuple[Choice, ...]:
    return even(
        ("Soon the ", "Then the ", "Now the "),
        Turn("guest", story._replace(things=(thing,), held=(0,))),
    )


def _guest(story: Story, _: str) -> tuple[Choice, ...]:
    return pick("origin", story, drawn("{} ", CHARACTERS, without=story.who[0]))


def _origin(story: Story, name: str) -> tuple[Choice, ...]:
    story = story._replace(who=(*story.who, name))
    return weighted(
        ("came from the ", 0.35, Turn("coming", story)),
        (f"came to {story.character(0).him} from the ", 0.35, Turn("coming", story)),
        ("was far away ", 0.3, Turn("staying", story)),
    )


def _coming(story: Story, _: str) -> tuple[Choice, ...]:
    here = story.at[0]  # the text names the guest's former place, but no question asks for it
    return pick_place("carrying", story._replace(at=(here, here)), 1, "{} with ", without=here)


def _staying(story: Story, _: str) -> tuple[Choice, ...]:
    return pick_place("carrying", story, 1, "{at} the {} with ", without=story.at[0])


def _carrying(story: Story, place: str) -> tuple[Choice, ...]:
    at = (*story.at, place)[:2]
    return even(("the ", f"{story.character(1).his} "), Turn("luggage", story._replace(at=at)))


def _luggage(story: Story, _: str) -> tuple[Choice, ...]:
    return _pick_thing("introduced", story, 1, "{}. ", without=story.things[0])


def _introduced(story: Story, thing: str) -> tuple[Choice, ...]:
    return next_sentence(story._replace(things=(*story.things, thing), held=(0, 1), subject=1))


# The question; the facts determine its answer.


def _asked(answers: Iterable[tuple[str, str]]) -> tuple[Choice, ...]:
    """Choices from pairs (end of the question, answer)."""
    return weighted(
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


_STAGES = EVENTS | {
    stage.__name__.removeprefix("_"): stage
    for stage in (
        *(_opening, _hero, _dwelling, _home, _holding, _treasure),
        *(_entrance, _guest, _origin, _coming, _staying, _carrying, _luggage, _introduced),
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
