"""What a free text answers: the first thing that it states, read strictly and as a whole.

A text first repeats, frames and decorates, then states: "The sum of 3 and 4 is **7**." So the
numbers or words of the question are skipped where the text repeats them as given. The first thing
after that is the answer. It is never a part of a longer number or word.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from math import factorial

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
# "one" is left out: in "the one that follows" it is no number
_VALUES = {word: i for i, word in enumerate(_ONES) if word != "one"}
_VALUES |= {tens: 20 + 10 * i for i, tens in enumerate(_TENS)}
_VALUES |= {
    f"{t}-{o}": 20 + 10 * i + k for i, t in enumerate(_TENS) for k, o in enumerate(_ONES[1:10], 1)
}

_DIGITS = r"(?<![\w.])(?<!\d[/:])-?\d+(?:\.\d+)?(?![\w%]|[.:/]\d)"
_SPELLED = rf"\b(?:{'|'.join(sorted(_VALUES, key=len, reverse=True)).replace('-', '[- ]')})\b(?!-)"
NUMBER = rf"(?:{_DIGITS}|{_SPELLED})(?! +(?:hundred|thousand|million))"
WORD = r"[^\W\d_]+(?:['-][^\W\d_]+)*"

# Words that lead to an answer without being one; those of the question itself are added later.
_FRAME = """
    a all also an and answer antonym any are as at baby be because being but by called can common commonly correct
    course does each english example few for form from generally given has have hello here hi i if in into is it
    it's its just known language let's letter like made may me meaning means most my name named no of often ok okay
    on one only opposite or other our past please plural question referred refers right said say see short simple
    simply singular so some spelled sure tense term than that that's the their them then there these they this those
    thus to today typically used usually verb very was we well what's when where which while will with word words
    would written yes you young youngster your
"""
# the text goes on with another question
_NEXT = re.compile(r"\n\s*(?:Question|Q|User|Human)\b\s*\d*\s*[:.]", re.IGNORECASE)
_MARK = re.compile(r"\banswer(?:\s+is)?\s*:|\banswer\s+is\b|####", re.IGNORECASE)
_CONNECTING = r"(?:\b(?:and|or|then|to|finally)\b[ \t,]*)*(?:an?[ \t]+)?"
# between an answer and another one that the text offers
_JOIN = re.compile(rf"[ \t]*(?:[,;/&<>→]|\b(?=and|or|then|to))[ \t]*{_CONNECTING}", re.IGNORECASE)
_GAP = re.compile(rf"[\s,;/<>→-]*{_CONNECTING}", re.IGNORECASE)  # between the items of a list
_OPERATION = (
    r"\s*(?:[+*×÷x/,&]|(?<![a-z])-|\b(?:and|or|plus|minus|times|from|to|by)\b)+\s*"
    r"(?:(?:and|or)\s+)?(?:an?\s+)?"
)
_STORY = r"\s+[a-z][^\d.\n=]{0,30}"  # as in "14 coins and got 7 more"


def in_words(number: int) -> tuple[str, ...]:
    """A number from 0 to 99 in words: ("forty-two",); () for 1 and for all other numbers."""
    return tuple(word for word, value in _VALUES.items() if value == number)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with one right answer, and everything that is needed to judge a free text.

    Args:
        kind: one of `questions.KINDS`.
        topic: the topic within the kind, such as "addition".
        level: 1 (easy), 2 or 3.
        prompt: the text of the question.
        answer: the right answer, as one would write it.
        accepted: all spellings of it, `answer` first.
        form: "number", "choice" (one of `options`), "word" or "list" (all of `given`, in order).
        given: what the prompt names, in its order. A text that repeats it has not answered yet.
        options: the answers to choose from.
    """

    kind: str
    topic: str
    level: int
    prompt: str
    answer: str
    accepted: tuple[str, ...]
    form: str
    given: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """Expected share of right answers of an informed guess; 0 where nothing is listed."""
        if self.form == "list":
            return 1 / factorial(len(self.given))
        return 1 / len(self.options) if self.options else 0.0


def extract_answer(question: Question, text: str) -> str | None:
    """What a text answers, in lower case and plain digits, such as "7", "cold" or "2, 5, 9".

    After "answer:", "answer is" or "####" only what follows counts, otherwise the whole text. A
    further question that the text asks itself is cut off. In the rest, the first number, option,
    word or list counts that does not just repeat the question. It is no answer where it is negated
    ("not 7"), is offered with another ("7 or 8") or, unless a list is asked for, continues as a
    list ("7, 8, 9"). Digits and number words are read whole: 14 is not in 141, -14 or 1.14.

    Returns:
        The answer; None where the text states nothing.
    """
    text = re.sub(
        r"[*_`\"“”‘$\\{}()\[\]]|\bboxed\b|(?<!\w)'|'(?!\w)",
        " ",
        text.replace("’", "'").replace("−", "-"),
    )
    before, *marked = _MARK.split(_NEXT.split(text)[0], maxsplit=1)
    text = marked[0] if marked and re.search(r"\w", marked[0]) else before  # it may end at the mark
    return _listed(question, text) if question.form == "list" else _single(question, text)


def _single(question: Question, text: str) -> str | None:
    """The first number, option or word that counts; None where it is negated or one of several."""
    # 1) the candidates: what neither repeats the question nor frames the answer
    accepted = {spelling.lower() for spelling in question.accepted}
    text, framing = _without_given(question, text), set()
    if question.form == "word":
        framing = {*_FRAME.split(), *re.findall(WORD, question.prompt.lower())} - accepted
    tokens = [
        m
        for m in re.finditer(_pattern(question), text, re.IGNORECASE)
        if m.group().lower() not in framing
    ]
    if not tokens:
        return None
    # 2) the operands of a sum are no answer, its result is
    first = tokens[0]
    before, after = text[: first.start()], text[first.end() :].split("\n")[0]
    if _is_number(first.group()) and _begins_sum(before, after):
        result = re.search(rf"=\s*({NUMBER})(?!\s*[-+*×÷/=])", after, re.IGNORECASE)
        return _plain(result.group(1)) if result else None
    # 3) what is negated, or offered with another answer, does not count
    if re.search(r"(?:\bnot|n't)\s+(?:\w+\s+)?$", before, re.IGNORECASE):
        return None
    values = {_plain(token.group()) for token in _row(text, tokens, _JOIN, accepted)}
    return _plain(first.group()) if len(values) == 1 or values <= accepted else None


def _begins_sum(before: str, after: str) -> bool:
    """Whether a number is one of several operands, as in 5 + 2 = 7, rather than an answer."""
    if re.match(r"(?:\s+[a-z]+)?\s*[-+*×÷/]\s*\w", after, re.IGNORECASE):
        return True
    return bool(re.search(r"[-+*×÷/]\s*$", before) and re.match(r"\s*=", after))


def _listed(question: Question, text: str) -> str | None:
    """The first list of at least two items that is not the question's own.

    Each line is searched first, then the text across its lines.
    """
    text = re.sub(r"^[ \t]*(?:\d+[.)]|[-•])[ \t]+(?=\S)", "", text, flags=re.MULTILINE)
    of_numbers, given = _is_number(question.given[0]), [thing.lower() for thing in question.given]
    for part in (*text.split("\n"), text):
        tokens = list(re.finditer(NUMBER if of_numbers else WORD, part, re.IGNORECASE))
        tokens = [token for token in tokens if not _GAP.fullmatch(token.group())]  # "and", "then"
        while tokens:
            row = [_plain(token.group()) for token in _row(part, tokens, _GAP, given)]
            ours = of_numbers or row[0] in given
            tokens = tokens[len(row) if ours else 1 :]
            # leave out the given items where the text repeats them
            row = row[len(given) :] if row[: len(given)] == given else row
            if ours and len(row) > 1:
                return ", ".join(row)
    return None


def _row(
    text: str, tokens: list[re.Match], join: re.Pattern, own: Collection[str]
) -> list[re.Match]:
    """The first token and those joined to it.

    A foreign word is not part of the row where a sentence continues after it.
    """
    row = tokens[:1]
    for token in tokens[1:]:
        foreign = _plain(token.group()) not in own and not _is_number(token.group())
        if foreign and re.match(r"[ \t]+(?!and\b|or\b|then\b)\w", text[token.end() :]):
            break
        if not join.fullmatch(text[row[-1].end() : token.start()]):
            break
        row.append(token)
    return row


def _without_given(question: Question, text: str) -> str:
    """The text without the question's own numbers or words where it repeats them together.

    Numbers are found in either direction.
    """
    given = [f"(?:{'|'.join(map(re.escape, _spellings(item)))})" for item in question.given]
    rows, joined = [given] * bool(given), _OPERATION
    if question.form == "number":
        rows, joined = [given, given[::-1]], f"(?:{_OPERATION}|{_STORY})"
    for row in rows:
        text = re.sub(
            rf"(?<![\w.-]){joined.join(row)}(?![\w%-]|\.\d)", " ", text, flags=re.IGNORECASE
        )
    return text


def _pattern(question: Question) -> str:
    """The regular expression for an answer of this form."""
    if question.form == "number" or (question.options and _is_number(question.options[0])):
        return NUMBER
    return rf"(?<!['\w-])(?:{'|'.join(question.options)})\b(?!['-]\w)" if question.options else WORD


def _spellings(item: str) -> tuple[str, ...]:
    return (item, *in_words(int(item))) if item.isdigit() else (item,)


def _is_number(text: str) -> bool:
    return text[-1].isdigit() or text.lower().replace(" ", "-") in _VALUES


def _plain(text: str) -> str:
    """A number as plain digits, anything else in lower case."""
    text = text.lower()
    if text[-1].isdigit():
        return text.replace(",", "").removesuffix(".0")
    return str(_VALUES.get(text.replace(" ", "-"), text))
