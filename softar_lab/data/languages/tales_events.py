"""What happens in a story of `tales`: each sentence begins at the stage `next`."""

from .grammar import Choice
from .tales_choices import Turn, even, pick_place, weighted
from .tales_world import ASKING, MOODS, PLACES, Story


def next_sentence(story: Story, _: str = "") -> tuple[Choice, ...]:
    """The beginnings of the next sentence: an event, a mood, or the question."""
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
    return weighted(*options)


def _mood(story: Story, _: str) -> tuple[Choice, ...]:
    his = story.character(story.subject).his
    return even(
        (mood.format(his=his) for mood in MOODS),
        Turn("next", story._replace(subject=None, moods=story.moods + 1)),
    )


def _verb(story: Story, _: str) -> tuple[Choice, ...]:
    me, near = story.subject, story.together()
    return weighted(
        ("went to the ", 3.0, Turn("went", story)),
        ("gave the ", 3.0 if near and story.having(me) else 0.0, Turn("gave", story)),
        ("took the ", 2.0 if near and story.having(1 - me) else 0.0, Turn("took", story)),
        ("found the ", 4.0 if story.having(story.at[me]) else 0.0, Turn("found", story)),
    )


def _handed(story: Story, things: tuple[str, ...], to: int, end: str) -> tuple[Choice, ...]:
    return weighted(
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
    return pick_place(stage, story, traveller, form, without=here, urgent=tuple(sorted(urgent)))


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
    return weighted((". ", 3.0, Turn("next", story.after_event())), *lose, *find)


def _they(story: Story, _: str) -> tuple[Choice, ...]:
    swap = 2.0 if set(story.held) == {0, 1} else 0.0
    swapped = Turn("next", story.after_event(held=story.held[::-1]))
    return weighted(
        ("went to the ", 1.0, Turn("they_went", story)),
        ("swapped the {} and the {}. ".format(*story.things), swap, swapped),
    )


def _they_went(story: Story, _: str) -> tuple[Choice, ...]:
    return _travel("they_arrived", story, 0, "{}. ")


def _they_arrived(story: Story, place: str) -> tuple[Choice, ...]:
    return next_sentence(story.after_event(at=(place, place)))


EVENTS = {"next": next_sentence} | {
    stage.__name__.removeprefix("_"): stage
    for stage in (
        *(_mood, _verb, _gave, _took, _found, _went, _arrived),
        *(_they, _they_went, _they_arrived),
    )
}
"""The stages of the events, by name."""
