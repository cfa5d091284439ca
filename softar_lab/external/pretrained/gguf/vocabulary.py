"""The tokenizer of a GGUF file, from its own entries alone.

It is made here and not by transformers, whose classes add special tokens that a file does not have,
and split texts by another rule where they do not know the file's.
"""

from collections import Counter
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ..errors import listed
from .file import GGUFFile
from .splitting import SPLITTINGS, Splitting

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # types of tokens in the format
_BLANK = "\u2581"  # a space, in pieces of sentencepiece
_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
_PLACES = ("prefix", "suffix", "middle", "eot", "eom", "fim_pre", "fim_suf", "fim_mid", "fim_pad",
           "fim_rep", "fim_sep", "mask", "cls", "fsep")  # fmt: skip
_IDLE = (
    *(f"tokenizer.ggml.{name}_token_id" for name in _PLACES),
    "tokenizer.ggml.token_type_count",
    "tokenizer.ggml.eog_token_ids",
    "tokenizer.huggingface.json",
    "tokenizer.chat_templates",
    "tokenizer.chat_template.tool_use",
    "tokenizer.chat_template.rag",
)


def tokenizer_of(file: GGUFFile) -> Any:
    """The tokenizer of a file, as one of transformers.

    Raises:
        PretrainedError: where the file's rules are not known, or its tokens have no rows.
    """
    from transformers import PreTrainedTokenizerFast

    tokens, types = _tokens(file)
    kind = file.take("tokenizer.ggml.model")
    if kind not in _KINDS:
        file.refuse(f"tokenizer.ggml.model = {kind!r} (read here: {' and '.join(_KINDS)})")
    library, begins = _KINDS[kind](file, tokens, types)
    # 1) tokens that are found in a text as they stand
    library.add_tokens([_added(one) for one, t in zip(tokens, types) if t == USER_DEFINED])
    library.add_special_tokens(
        [_added(one, special=True) for one, t in zip(tokens, types) if t in (CONTROL, UNKNOWN)]
    )
    # 2) tokens with a part to play
    ids = special_ids(file)
    if wrong := [name for name, i in ids.items() if not 0 <= i < len(tokens)]:
        file.refuse(f"its tokens {listed(wrong)} are not among its {len(tokens)}")
    named = {f"{name}_token": tokens[i] for name, i in ids.items()}
    _frame(file, library, ids, tokens, begins)
    for name in _IDLE:
        file.take(name)
    template = file.take("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=library,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **named,
    )


def special_ids(file: GGUFFile) -> dict[str, int]:
    """The ids of bos, eos, unk, pad and sep, as far as the file has them.

    Files of sentencepiece that do not name them have the usual ones.
    """
    usual = {"unk": 0, "bos": 1, "eos": 2} if file.take("tokenizer.ggml.model") == "llama" else {}
    found = {
        name: file.take(f"tokenizer.ggml.{entry}_token_id", usual.get(name))
        for name, entry in _IDS.items()
    }
    return {name: int(i) for name, i in found.items() if i is not None and i != 2**32 - 1}


def _tokens(file: GGUFFile) -> tuple[list[str], list[int]]:
    """The tokens and their types."""
    tokens = file.take("tokenizer.ggml.tokens", [])
    types = file.take("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    rows = file.shape("token_embd.weight")[0]
    if not 0 < len(tokens) <= rows:
        file.refuse(f"{len(tokens)} tokens for the {rows} rows of its table")
    if twice := [one for one, count in Counter(tokens).items() if count > 1]:
        file.refuse(f"its tokens {listed(twice)} occur twice")
    return tokens, types


def _added(token: str, special: bool = False) -> AddedToken:
    return AddedToken(token, special=special, normalized=False)


def _frame(
    file: GGUFFile, library: Tokenizer, ids: dict[str, int], tokens: list[str], begins: bool
) -> None:
    """Let the tokenizer put the begin and the end token around a text, as the file says."""
    usual = {"bos": begins, "eos": False, "sep": False}
    add = {
        name: name in ids and file.take(f"tokenizer.ggml.add_{name}_token", usual[name])
        for name in usual
    }
    if add["sep"]:
        file.refuse("tokenizer.ggml.add_sep_token = True")
    if not (add["bos"] or add["eos"]):
        return
    before = [tokens[ids["bos"]]] if add["bos"] else []
    after = [tokens[ids["eos"]]] if add["eos"] else []
    marks = {token: library.token_to_id(token) for token in before + after}
    framed = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=list(marks.items())
    )
    library.post_processor = framed


# -- the two kinds of vocabulary -------------------------------------------------------------------


def _byte_level(file: GGUFFile, tokens: list[str], types: list[int]) -> tuple[Tokenizer, bool]:
    """Pieces of bytes with a list of merges, after GPT-2."""
    name = file.take("tokenizer.ggml.pre", "default")
    if name not in SPLITTINGS:
        file.refuse(
            f"tokenizer.ggml.pre = {name!r}: how texts are split is not known "
            f"(known: {', '.join(SPLITTINGS)})"
        )
    how: Splitting = SPLITTINGS[name]
    file.take("tokenizer.ggml.scores")  # all 0
    file.take("tokenizer.ggml.add_space_prefix")  # has no effect on this kind
    merges = [tuple(one.split(" ")) for one in file.take("tokenizer.ggml.merges", [])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if odd := [one for one in merges if len(one) != 2 or "".join(one) not in vocabulary]:
        file.refuse(f"tokenizer.ggml.merges: {odd[0]} are not two pieces of a third")
    library = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=how.whole_words))
    library.normalizer = normalizers.NFC() if how.composed else None
    splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in how.rules]
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([*splits, bytewise])
    library.decoder = decoders.ByteLevel()
    return library, how.begins


def _sentencepiece(file: GGUFFile, tokens: list[str], types: list[int]) -> tuple[Tokenizer, bool]:
    """Pieces of characters with a score each, and 256 of one byte for what they do not cover."""
    file.take("tokenizer.ggml.pre")  # texts are not split
    file.take("tokenizer.ggml.merges")  # in some files beside the scores
    file.expect_entry("tokenizer.ggml.remove_extra_whitespaces", False)
    prefix = bool(file.take("tokenizer.ggml.add_space_prefix", True))
    scores = file.take("tokenizer.ggml.scores", [])
    if len(scores) != len(tokens):
        file.refuse(f"tokenizer.ggml.scores: {len(scores)} for {len(tokens)} tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pieces = {
        token: score
        for token, score, kind in zip(tokens, scores, types)
        if kind in (NORMAL, USER_DEFINED)
    }
    unknown = special_ids(file).get("unk")
    library = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(pieces, vocabulary),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    begin = [normalizers.Prepend(_BLANK)] if prefix else []
    library.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", _BLANK)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    library.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return library, True


def _merges(pieces: dict[str, float], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces that make up a third, those of the highest score first."""
    found = []
    for piece, score in pieces.items():
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in pieces and pair[1] in pieces]
        found += [(-score, ids[left], ids[right], left, right) for left, right in pairs]
    return [(left, right) for *_, left, right in sorted(found)]


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece}
