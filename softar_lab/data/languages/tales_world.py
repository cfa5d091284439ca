"""The world of `tales`: characters, things and places, their words, and the facts of a story."""

from typing import NamedTuple


class Role(NamedTuple):
    """A male and a female character, with the things and places that both of them favour."""

    male: str
    female: str
    things: tuple[str, ...]
    places: tuple[str, ...]


ROLES = (
    Role("king", "queen", ("crown", "ring", "jewel"), ("castle", "palace")),
    Role("prince", "princess", ("sword", "mirror", "ring"), ("palace", "lake")),
    Role("duke", "duchess", ("cup", "harp", "coin"), ("castle", "bridge")),
    Role("wizard", "witch", ("wand", "book", "potion"), ("tower", "cave")),
    Role("monk", "nun", ("candle", "book", "bell"), ("church", "hill")),
    Role("shepherd", "shepherdess", ("flute", "staff", "bell"), ("meadow", "hill")),
    Role("waiter", "waitress", ("cake", "cup", "jug"), ("inn", "kitchen")),
    Role("man", "woman", ("axe", "coat", "rope"), ("farm", "village")),
    Role("boy", "girl", ("ball", "kite", "drum"), ("garden", "school")),
    Role("brother", "sister", ("map", "ball", "shell"), ("barn", "river")),
    Role("father", "mother", ("bread", "lamp", "basket"), ("kitchen", "village")),
    Role("uncle", "aunt", ("key", "clock", "letter"), ("mill", "market")),
    Role("grandfather", "grandmother", ("scarf", "clock", "quilt"), ("mill", "garden")),
)
PAIRS = tuple((role.male, role.female) for role in ROLES)
"""(male, female) of every role: the known answers of analogies such as king - man + woman = queen."""

CHARACTERS = tuple(name for pair in PAIRS for name in pair)
THINGS = tuple(
    sorted({"feather", "rose", "egg", "box", "net"}.union(*(role.things for role in ROLES)))
)
PLACES = {
    **dict.fromkeys(("castle", "palace", "tower", "church", "kitchen", "village", "garden"), "in"),
    **dict.fromkeys(("barn", "mill", "forest", "cave", "meadow"), "in"),
    **dict.fromkeys(("hill", "bridge", "farm"), "on"),
    **dict.fromkeys(("river", "lake", "sea"), "by"),
    **dict.fromkeys(("market", "inn", "school"), "at"),
}
"""Every place and the preposition that goes with it."""

OPENINGS = (
    "Once the ",
    "Long ago the ",
    "One day the ",
    "One cold night the ",
    "At dawn the ",
    "In spring the ",
)
DWELLINGS = ("lived ", "sat ", "sang ", "slept ", "worked ", "was all alone ")
MOODS = (
    *(
        "was glad. ",
        "was sad. ",
        "was tired. ",
        "smiled. ",
        "laughed. ",
        "danced. ",
        "looked at the moon. ",
    ),
    *("sang {his} song. ", "told {his} tale. ", "shut {his} eyes. ", "said: oh, what a day. "),
)
# ASKING[n]: probability that the question comes after n events and moods. It keeps stories below
# 400 characters.
ASKING = (0.0, 0.15, 0.4, 1.0)


class Character(NamedTuple):
    role: Role
    he: str
    his: str
    him: str


CAST = {role.male: Character(role, "he", "his", "him") for role in ROLES}
CAST |= {role.female: Character(role, "she", "her", "her") for role in ROLES}


class Story(NamedTuple):
    """The facts of a story so far. Characters are numbered in order of appearance."""

    who: tuple[str, ...] = ()
    at: tuple[str, ...] = ()  # where each character is
    things: tuple[str, ...] = ()
    held: tuple[int | str, ...] = ()  # each thing's holder (number), or its place
    events: int = 0
    moods: int = 0
    subject: int | None = None  # who acted last, while "he" or "she" still means them

    def after_event(self, **changes) -> "Story":
        """The story one event later."""
        return self._replace(events=self.events + 1, **changes)

    def given(self, thing: str, to: int | str) -> "Story":
        """The story after the event that leaves a thing with a character or at a place."""
        holders = zip(self.things, self.held, strict=True)
        return self.after_event(
            held=tuple(to if other == thing else holder for other, holder in holders)
        )

    def having(self, holder: int | str) -> tuple[str, ...]:
        """The things that a character holds, or that lie at a place."""
        return tuple(
            thing for thing, other in zip(self.things, self.held, strict=True) if other == holder
        )

    def character(self, index: int) -> Character:
        return CAST[self.who[index]]

    def together(self) -> bool:
        return self.at[0] == self.at[1]
