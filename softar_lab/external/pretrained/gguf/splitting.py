"""How texts are split before their pieces are merged: what `tokenizer.ggml.pre` stands for.

The rules are those of the tokenizers that the names come from. Where llama.cpp's own differ (it
knows no NFC, and no upper case outside ASCII), the model was trained on these.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """The properties of a byte-level tokenizer that its name stands for.

    Attributes:
        rules: regular expressions; each splits what those before it left whole.
        whole_words: whether a word that is in the vocabulary is taken without merging.
        begins: whether texts begin with the begin token where the file does not say.
        composed: whether texts are normalised to NFC.
    """

    rules: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False
    composed: bool = False


_ENDINGS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_ENDINGS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"(?i:{_ENDINGS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
    rf"|DIGITS| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_TEKKEN = _CASED.replace("END", "").replace("DIGITS", r"\p{N}")
_GPT4O = _CASED.replace("END", f"(?i:{_ENDINGS})?").replace("DIGITS", r"\p{N}{1,3}")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_MARKS = r"[\p{P}\$\+<=>\^~\|`]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)

_plain, _digits = Splitting(rules=(_GPT2,)), Splitting(rules=(r"\p{N}", _GPT2))
_llama3 = Splitting(rules=(_LLAMA3,), whole_words=True, begins=True)
_composed = Splitting(rules=(_GPT2,), composed=True)
_bloom = Splitting(rules=(_BLOOM,))

SPLITTINGS: dict[str, Splitting] = {
    **dict.fromkeys(("gpt-2", "phi-2", "jais"), _plain),
    **dict.fromkeys(("olmo", "mpt"), _composed),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), _digits),
    "command-r": Splitting(rules=(r"\p{N}", _GPT2), composed=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "lfm2", "falcon3"), _llama3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), Splitting(rules=(_LLAMA3,))),
    **dict.fromkeys(("qwen2", "stablelm2"), Splitting(rules=(_QWEN2,), composed=True)),
    "deepseek-r1-qwen": Splitting(rules=(_QWEN2,)),
    "tekken": Splitting(rules=(_TEKKEN,), whole_words=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Splitting(rules=(_GPT4O,))),
    "falcon": Splitting(rules=(_MARKS, _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _bloom),
    "viking": Splitting(rules=(_BLOOM, r"\p{N}")),
    "deepseek-v3": Splitting(rules=(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)),
    # what llama.cpp does with a file that does not say
    "default": Splitting(rules=(_MARKS.replace("`", ""), _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
