"""The fields of a request, checked one by one; what would change an answer unnoticed is refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from softar_lab.core.checks import unicode_text

Check = Callable[[str, Any], Any]  # (name, value) -> the value to use; BadRequest where it is wrong

MOST_WRITTEN = 2**15  # tokens that one choice may have
MOST_CHOICES = 64  # of one prompt
MOST_ALTERNATIVES = 100  # tokens beside each token
MOST_STOPS = 64
MOST_TEXTS = 2048  # texts in one request


class BadRequest(ValueError):
    """A request that cannot be answered; `field` names the field that is wrong."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field = field


def _must_be(name: str, what: str, value: Any) -> BadRequest:
    return BadRequest(name, f"must be {what}, not {value!r:.60}")


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`; true and false are none."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # some languages have one kind of number only
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _must_be(name, f"a whole number from {low} to {high}", value)
        return value

    return check


def number(low: float | int, high: float | int) -> Check:
    """A number from `low` to `high`."""

    def check(name: str, value: Any) -> float:
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or not low <= value <= high:  # which NaN fails, too
            raise _must_be(name, f"a number from {low} to {high}", value)
        return float(value)

    return check


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _must_be(name, "true or false", value)
    return value


def text(name: str, value: Any) -> str:
    """A text that is Unicode: without half of a surrogate pair."""
    if not isinstance(value, str):
        raise _must_be(name, "a text", value)
    try:
        return unicode_text(value)
    except ValueError as error:
        raise BadRequest(name, str(error)) from None


def token_ids(name: str, value: Any) -> list[int]:
    """A list of whole numbers; whether the vocabulary has them is checked later."""
    if not isinstance(value, list) or not all(type(one) is int for one in value):
        raise _must_be(name, "a list of token ids", value)
    if wrong := [one for one in value if not 0 <= one < 2**31]:
        raise BadRequest(name, f"token id {wrong[0]!r:.30} is in no vocabulary")
    return value


def prompts(name: str, value: Any) -> list[str | list[int]]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    if isinstance(value, str):
        return [text(name, value)]
    if not isinstance(value, list) or not value:
        raise _must_be(name, "a text, token ids or a list of these", value)
    if all(type(one) is int for one in value):
        return [token_ids(name, value)]
    if len(value) > MOST_TEXTS:
        raise BadRequest(name, f"at most {MOST_TEXTS} in one request, not {len(value)}")
    kind = text if isinstance(value[0], str) else token_ids
    return [kind(f"{name}[{i}]", one) for i, one in enumerate(value)]


def stops(name: str, value: Any) -> tuple[str, ...]:
    """A text or a list of texts at which writing ends; none of them is empty."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MOST_STOPS:
        raise _must_be(name, f"a text or a list of at most {MOST_STOPS} texts", value)
    if "" in found:
        raise BadRequest(name, "an empty text would stop before the first token")
    return tuple(text(name, one) for one in found)


def alternatives(name: str, value: Any) -> int | None:
    """How many tokens to name beside each token; false is none asked for."""
    return None if value is False else whole(0, MOST_ALTERNATIVES)(name, value)


def streaming(name: str, value: Any) -> bool:
    """The options of a stream: whether usage comes last."""
    if not isinstance(value, dict):
        raise _must_be(name, "an object", value)
    for option, setting in value.items():
        if option not in ("include_usage", "include_obfuscation"):
            raise BadRequest(f"{name}.{option:.60}", "is not known here")
        flag(f"{name}.{option}", setting)
    return value.get("include_usage", False)


def messages(name: str, value: Any) -> list[dict[str, str]]:
    """The messages of a chat: texts with roles, and nothing else that a template might use."""
    if not isinstance(value, list) or not value or len(value) > MOST_TEXTS:
        raise _must_be(name, "a list of messages", value)
    return [_message(f"{name}[{i}]", one) for i, one in enumerate(value)]


def _message(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _must_be(name, "an object", value)
    for key, content in value.items():
        if key not in ("role", "content") and content is not None:
            raise BadRequest(f"{name}.{key:.60}", "only role and content are known here")
    content = value.get("content")
    if isinstance(content, list):
        content = "".join(_part(f"{name}.content[{i}]", one) for i, one in enumerate(content))
    role = text(f"{name}.role", value.get("role"))
    return {"role": role, "content": text(f"{name}.content", content)}


def _part(name: str, value: Any) -> str:
    if not isinstance(value, dict) or value.get("type") != "text":
        raise BadRequest(name, f"only parts of type text are known here, not {value!r:.60}")
    return text(f"{name}.text", value.get("text"))


def one_of(*known: Any) -> Check:
    """One of these values: any other would ask for something that is not done here."""
    either = " or ".join(repr(one) for one in known)

    def check(name: str, value: Any) -> Any:
        same = (
            type(value) is type(one) or {type(value), type(one)} == {int, float} for one in known
        )
        if not any(alike and value == one for alike, one in zip(same, known)):
            raise BadRequest(name, f"{value!r:.60} is not done here; leave it out, or {either}")
        return value

    return check


def ignored(name: str, value: Any) -> None:
    """Anything: it changes no answer."""


@dataclass(frozen=True)
class Field:
    """One field: how it is checked, and its value where it is absent or null.

    Raises, by `read`: BadRequest where a required one is missing.
    """

    check: Check
    default: Any = None
    required: bool = False


_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("request_id", "priority"),
)
# What both ways of writing share. `model` names the served model, whatever the request says.
_WRITING: dict[str, Field] = {
    "model": Field(text),
    "max_tokens": Field(whole(0, MOST_WRITTEN)),
    "temperature": Field(number(0, 100), 1.0),
    "n": Field(whole(1, MOST_CHOICES), 1),
    "seed": Field(whole(-(2**63), 2**63 - 1)),
    "stop": Field(stops, ()),
    "stream": Field(flag, False),
    "stream_options": Field(streaming, False),
    "best_of": Field(one_of(1)),
    "top_p": Field(one_of(1)),
    "min_p": Field(one_of(0)),
    "top_k": Field(one_of(-1, 0)),
    "presence_penalty": Field(one_of(0)),
    "frequency_penalty": Field(one_of(0)),
    "repetition_penalty": Field(one_of(1)),
    "logit_bias": Field(one_of({})),
    **{name: Field(ignored) for name in _IGNORED},
}
COMPLETION: Mapping[str, Field] = {
    **_WRITING,
    "prompt": Field(prompts, required=True),
    "echo": Field(flag, False),
    "logprobs": Field(alternatives),
    "suffix": Field(one_of("")),
}
CHAT: Mapping[str, Field] = {
    **_WRITING,
    "messages": Field(messages, required=True),
    "max_completion_tokens": Field(whole(0, MOST_WRITTEN)),
    "logprobs": Field(flag, False),
    "top_logprobs": Field(whole(0, MOST_ALTERNATIVES), 0),
    "tools": Field(one_of([])),
    "tool_choice": Field(one_of("none", "auto")),
    "parallel_tool_calls": Field(flag),
    "functions": Field(one_of([])),
    "modalities": Field(one_of(["text"])),
    "response_format": Field(one_of({"type": "text"})),
}
EMBEDDINGS: Mapping[str, Field] = {
    "model": Field(text),
    "input": Field(prompts, required=True),
    "encoding_format": Field(one_of("float", "base64"), "float"),
    **{name: Field(ignored) for name in _IGNORED},
}
TOKENIZE: Mapping[str, Field] = {
    "model": Field(text),
    "prompt": Field(text, required=True),
    "add_special_tokens": Field(flag, True),
    "return_token_strs": Field(flag, False),
}
DETOKENIZE: Mapping[str, Field] = {
    "model": Field(text),
    "tokens": Field(token_ids, required=True),
}


def read(body: Any, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The checked value of every field; null is as good as absent.

    Raises:
        BadRequest: for a field that is wrong, missing or unknown.
    """
    if not isinstance(body, dict):
        raise BadRequest("body", f"must be a JSON object, not {body!r:.60}")
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in fields:
            raise BadRequest(
                f"{name:.60}" or '""', "is not known here, so it cannot be heeded; leave it out"
            )
    for name, field in fields.items():
        if field.required and name not in given:
            raise BadRequest(name, "is missing")
    return {
        name: field.check(name, given[name]) if name in given else field.default
        for name, field in fields.items()
    }


def finite(value: str) -> float:
    """What json.loads makes of NaN and Infinity, which are no JSON: an error."""
    raise BadRequest("body", f"{value} is no JSON")
