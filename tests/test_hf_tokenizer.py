"""Tokenizers of every kind that transformers has: lengths add up to the text that was given."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip(
    "transformers", reason="transformers, which reads pretrained models, is not installed"
)

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
)

import softar_lab as lab
from softar_lab.external.pretrained.tokenizer import PieceTokenizer
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_lab.metrics.free_texts import judge_texts
from softar_lab.metrics.texts import judge
from softar_lab.models.scoring import char_log_probs

WORDS = [
    "the",
    "king",
    "rode",
    "to",
    "the",
    "old",
    "town",
    "and",
    "the",
    "queen",
    "was",
    "in",
    "the",
    "garden",
]
MARKS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHARS = sorted(set("".join(WORDS)) | {"\u2581"})
SPACED = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)  # fmt: skip


def trained(model, normalizer=None, pre_tokenizer=None, decoder=None, special=(), alphabet=()):
    """A tokenizer of pairs of letters that are frequent in `WORDS`."""
    one = Tokenizer(model)
    if normalizer:
        one.normalizer = normalizer
    if pre_tokenizer:
        one.pre_tokenizer = pre_tokenizer
    if decoder:
        one.decoder = decoder
    how = {"show_progress": False, "special_tokens": [*MARKS, *special]}
    if isinstance(model, models.WordLevel):
        one.train_from_iterator([" ".join(WORDS)], trainers.WordLevelTrainer(**how))
    elif isinstance(model, models.WordPiece):
        one.train_from_iterator([" ".join(WORDS)], trainers.WordPieceTrainer(vocab_size=200, **how))
    else:
        trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=[*alphabet], **how)
        one.train_from_iterator([" ".join(WORDS)], trainer)
    return one


def byte_level(normalizer=None):
    return trained(models.BPE(), normalizer, pre_tokenizers.ByteLevel(add_prefix_space=False),
                   decoders.ByteLevel(), alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip


def fallback(normalizer, pre_tokenizer=None, decoder=SPACED):
    """Characters that are no pieces are spelled in bytes, as in Llama 2, Mistral and Gemma."""
    pieces = [*MARKS, *BYTES, *CHARS, "\u2581t", "he", "\u2581the", "in"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("i", "n")]
    one = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    one.normalizer, one.decoder = normalizer, decoder
    if pre_tokenizer:
        one.pre_tokenizer = pre_tokenizer
    return one


def unigram(byte_fallback, normalizer=None):
    pieces = [*MARKS, *(BYTES if byte_fallback else ()), *CHARS, "\u2581the", "\u2581king"]
    scores = [(piece, -1.0 - i / 100) for i, piece in enumerate(pieces)]
    one = Tokenizer(models.Unigram(scores, MARKS.index("<unk>"), byte_fallback))
    one.pre_tokenizer = pre_tokenizers.Metaspace()
    one.decoder = SPACED if byte_fallback else decoders.Metaspace()
    if normalizer:
        one.normalizer = normalizer
    return one


UNSPACED = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
)
PREPENDED = normalizers.Sequence(
    [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
)
BARE = normalizers.Sequence(
    [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
)
SPLIT = pre_tokenizers.Whitespace()
MADE = {
    "bytes": lambda: byte_level(),
    "bytes, composed": lambda: byte_level(normalizers.NFC()),
    "bytes, compatible": lambda: byte_level(normalizers.NFKC()),
    "bytes, bare": lambda: byte_level(BARE),
    "fallback": lambda: fallback(PREPENDED),
    "fallback, no prefix": lambda: fallback(normalizers.Replace(" ", "\u2581"), decoder=UNSPACED),
    "fallback, metaspace": lambda: fallback(
        normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "unigram": lambda: unigram(False),
    "unigram, bytes": lambda: unigram(True),
    "unigram, bare": lambda: unigram(True, BARE),
    "word pieces": lambda: trained(models.WordPiece(unk_token="<unk>"), normalizers.BertNormalizer(),
                                   pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()),
    "words": lambda: trained(models.WordLevel(unk_token="<unk>"), None, SPLIT),
    "letters alone": lambda: trained(models.BPE(), None, SPLIT),
}  # fmt: skip
# these give back every text that they cut
LOSSLESS = {"bytes", "fallback", "fallback, no prefix"}
KNOWS_ALL = {name for name in MADE if name.startswith(("bytes", "fallback"))} | {"unigram, bytes"}


def wrapped(one: Tokenizer, **more) -> PieceTokenizer:
    marks = {"bos_token": "<s>", "eos_token": "</s>", **more}
    one.add_special_tokens(MARKS)
    library = PreTrainedTokenizerFast(tokenizer_object=one, **marks)
    return PieceTokenizer(library, len(library))


@pytest.fixture(scope="module")
def tokenizers():
    return {name: wrapped(make(), unk_token="<unk>" if "letters" not in name else None)
            for name, make in MADE.items()}  # fmt: skip


ODD = st.sampled_from(["é", "e\u0301", "e\u0301\u0323", "İ", "ﬁ", "½", "😀", "👨‍👩‍👧", "日本", "가",
                       "\u1112\u1161\u11ab",
                       "\u0301", "\t", "\n", "  ", " ", "\u3000", "\u200d", "\u2581", "<|im_start|>", "<unk>", "<s>",
                       "\ufffd", "\x00", "the king", " the", "in", "Queen", "zebra", "<0xC3>"])  # fmt: skip
TEXTS = st.lists(ODD, max_size=8).map("".join) | st.text(max_size=12)


@pytest.mark.parametrize("name", MADE)
@given(text=TEXTS)
def test_lengths_add_up_to_the_given_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*no tokens of the model")
        ids, lengths = tokenizer.encode_with_lengths(text)
    assert torch.equal(ids, tokenizer.encode(text))
    assert len(lengths) == len(ids)
    assert (lengths >= 0).all()
    assert int(lengths.sum()) == (len(text) if len(ids) else 0)
    assert int(tokenizer.lengths(ids).sum()) == len(tokenizer.decode(ids))
    if name in KNOWS_ALL:
        assert tokenizer.unknown_in(text) == {}
    if name in LOSSLESS and not any(mark in text for mark in [*MARKS, "\u2581", "<0x"]):
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", MADE)
@given(ids=st.lists(st.integers(0, 10_000), max_size=150))
def test_lengths_of_any_tokens_add_up_to_what_they_decode_to(tokenizers, name, ids):
    tokenizer = tokenizers[name]
    ids = torch.tensor(ids, dtype=torch.int64) % tokenizer.vocab_size
    lengths = tokenizer.lengths(ids)
    assert (lengths >= 0).all()
    assert int(lengths.sum()) == len(tokenizer.decode(ids))


def test_parts_of_characters_and_spaces_that_no_token_has_find_their_token(tokenizers):
    for name, text, expected in (
        ("fallback", "gär 😀", [1, 0, 1, 0, 1, 1, 1, 0, 0, 0]),  # the prefix has the first letter
        ("fallback, no prefix", "gär 😀", [1, 1, 0, 1, 1, 1, 0, 0, 0]),
        ("fallback", " in", [1, 0, 2]),
        ("fallback", "  in", [1, 0, 1, 2]),
        ("unigram", " in", [1, 1, 1]),
        ("unigram", "  the", [1, 4]),
        ("bytes, composed", "cafe\u0301s", [1, 1, 1, 2, 0, 1]),
        ("bytes, bare", "Cafe\u0301", [1, 1, 1, 2]),
        ("word pieces", "the  Zoe\u0308 ", [3, 7]),
        ("words", " zebra the\n", [6, 5]),
    ):
        ids, spans = tokenizers[name]._spans(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lengths = tokenizers[name].encode_with_lengths(text)[1].tolist()
        assert lengths == expected, (
            name,
            tokenizers[name].library.convert_ids_to_tokens(ids),
            spans,
        )


def test_bytes_spell_characters_together_whatever_stands_beside_them(tokenizers):
    tokenizer = tokenizers["fallback"]
    of = tokenizer.library.convert_tokens_to_ids
    spelled = [of(f"<0x{byte:02X}>") for byte in "é😀".encode()]
    cut = [of("<0xF0>"), of("<0x9F>")]
    assert tokenizer.decode(spelled) == "é😀"
    assert tokenizer.decode(spelled + cut) == "é😀\ufffd"  # the library says eight times U+FFFD
    assert tokenizer.decode([*spelled, *cut, of("in")]) == "é😀\ufffdin"
    assert tokenizer.lengths(torch.tensor(spelled)).tolist() == [1, 0, 1, 0, 0, 0]
    assert tokenizer.lengths(torch.tensor(spelled + cut)).tolist() == [1, 0, 1, 0, 0, 0, 1, 0]


def test_marks_of_a_chat_are_one_token_and_its_text_comes_back(tokenizers):
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode("<|im_start|>in<|im_end|>")
        assert ids[0] == tokenizer.library.convert_tokens_to_ids("<|im_start|>")
        assert ids[-1] == tokenizer.library.convert_tokens_to_ids("<|im_end|>")
        assert tokenizer.encode_with_lengths("<|im_start|>in<|im_end|>")[1].sum() == 24


def test_what_the_model_cannot_tell_from_others_is_counted(tokenizers):
    assert tokenizers["words"].unknown_in("the zebra rode a bee") == {
        **dict.fromkeys("zra", 1), "e": 3, "b": 2, "a": 2}  # fmt: skip
    assert tokenizers["unigram"].unknown_in("the 😀😀!") == {"😀": 2, "!": 1}
    assert tokenizers["letters alone"].unknown_in("the x 😀\t!") == {"x": 1, "😀": 1, "!": 1}
    assert tokenizers["letters alone"].unk_id is None
    assert tokenizers["words"].unknown_in("the <unk> king") == {}


def test_a_lone_surrogate_is_named(tokenizers):
    for ask in ("encode", "encode_with_lengths", "unknown_in"):
        with pytest.raises(ValueError, match="lone surrogate at character 2"):
            getattr(tokenizers["bytes"], ask)("in\ud800")


class Lower(PreTrainedTokenizer):
    """A tokenizer in Python, which does not tell where its tokens are."""

    vocab_size = 128

    def get_vocab(self):
        return {chr(i): i for i in range(128)}

    def _tokenize(self, text):
        return [*text.lower()]

    def _convert_token_to_id(self, token):
        return ord(token)

    def _convert_id_to_token(self, index):
        return chr(index)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def test_tokenizers_without_offsets_are_exact_or_refused():
    exact = PieceTokenizer(ByT5Tokenizer(), 384)
    lengths = exact.encode_with_lengths("für 😀")[1]
    assert lengths.tolist() == [1, 0, 1, 1, 1, 0, 0, 0, 1]  # it leaves out bytes that spell nothing
    lower = PieceTokenizer(Lower(), 128)
    assert lower.encode_with_lengths("the king")[1].tolist() == [1] * 8
    with pytest.raises(ValueError, match="Lower reads another text"):
        lower.encode_with_lengths("The king")


# -- figures per character --------------------------------------------------------------------------------------------


def model_of(tokenizer: PieceTokenizer) -> Pretrained:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    return Pretrained(LlamaForCausalLM(config), tokenizer.library)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("text", ["für 😀 cafe\u0301", "  The KING  rode ", "日本 in the old town"])
def test_figures_are_per_character_of_the_given_text(tokenizers, name, text):
    tokenizer = tokenizers[name]
    model, ids = model_of(tokenizer), tokenizer.encode(text)
    nats = -model.log_probs(ids[None])[0].double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lengths = tokenizer.encode_with_lengths(text)[1]
        chars, judged = char_log_probs(model, text), judge(text, model)
        behind = judge(text, model, prompt="the ")
        (again,) = judge_texts([text], model, ["the "])
    if tokenizer.unk_id is not None:  # else some characters were left out
        assert len(chars) == len(text) - lengths[0]
        assert len(judged.log_probs) == len(behind.log_probs) == len(text)
        assert chars.sum().item() == pytest.approx(-nats[1:].sum().item(), rel=1e-5)
        assert judged.log_probs.sum().item() == pytest.approx(-nats.sum().item(), rel=1e-5)
        torch.testing.assert_close(again.log_probs, behind.log_probs, atol=1e-5, rtol=0)


def test_an_unknown_word_costs_what_unknown_words_cost(tokenizers):
    """It does not take the whole text out."""
    model = model_of(tokenizers["words"])
    with pytest.warns(UserWarning, match="1 parts of the text are no tokens.*'zebra'.*too low"):
        found = lab.evaluate(model, "the zebra rode")
    ids = torch.tensor([model.tokenizer.encode(word)[0] for word in ("the", "<unk>", "rode")])
    nats = -model.log_probs(ids[None])[0, 1:].double().sum().item()
    assert found == pytest.approx(nats / len(" zebra rode"), rel=1e-5)


def test_characters_that_become_nothing_are_left_out(tokenizers):
    model = model_of(tokenizers["letters alone"])
    with pytest.warns(UserWarning, match="2 characters.*are left out"):
        found = lab.evaluate(model, "the 😀king😀 rode")
    assert found == pytest.approx(lab.evaluate(model, "the king rode"))


def test_only_an_empty_prompt_needs_a_token_to_begin_with():
    tokenizer = wrapped(byte_level(), bos_token=None, eos_token=None)
    model, same = model_of(tokenizer), model_of(wrapped(byte_level()))
    assert lab.evaluate(model, "the king") == pytest.approx(lab.evaluate(same, "the king"))
    for one, other in zip(
        *(lab.generate(m, ["the king", "old"], 5, seed=1) for m in (model, same))
    ):
        assert one.token_ids.tolist() == other.token_ids.tolist()
    assert judge(" king", model, prompt="the").log_probs.isfinite().all()
    for ask in (
        lambda: lab.generate(model, "", 5),
        lambda: lab.generate(model, ["the", ""], 5),
        lambda: judge("the king", model),
        lambda: lab.evaluate(model, "the king\nold\n", "\n"),
    ):
        with pytest.raises(ValueError, match="nothing from nothing"):
            ask()
    assert math.isfinite(lab.evaluate(same, "the king\nold\n", "\n"))


PREFIXED = ["fallback", "fallback, metaspace", "unigram", "unigram, bytes"]


@pytest.mark.parametrize("name", MADE)
@given(prompt=TEXTS, text=TEXTS)
def test_a_text_behind_a_prompt_has_its_lengths_too(tokenizers, name, prompt, text):
    tokenizer = tokenizers[name].after(prompt)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*no tokens of the model")
        ids, lengths = tokenizer.encode_with_lengths(text)
    assert int(lengths.sum()) == (len(text) if len(ids) else 0)
    marked = any(mark in prompt + text for mark in [*MARKS, "\u2581", "<0x"])
    if name in LOSSLESS and not marked:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", PREFIXED)
def test_a_first_word_behind_a_prompt_is_not_the_first_of_a_text(tokenizers, name):
    tokenizer = tokenizers[name]
    assert tokenizer.puts_space_before
    whole, prompt = tokenizer.encode("the king"), tokenizer.encode("the")
    assert tokenizer.decode(whole[len(prompt) :]) == "king"
    behind = tokenizer.after("the")
    assert behind.decode(whole[len(prompt) :]) == " king"
    assert behind.encode_with_lengths(" king")[0].tolist() == whole[len(prompt) :].tolist()
    ids, lengths = tokenizer.after("r").encode_with_lengths("ode")
    assert torch.equal(torch.cat([tokenizer.encode("r"), ids]), tokenizer.encode("rode"))
    assert lengths.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", PREFIXED)
def test_generated_text_goes_on_where_the_prompt_ends(tokenizers, name):
    model = model_of(tokenizers[name])
    for path in lab.generate(model, ["the", "in the"], 20, seed=[1, 2]):
        whole = [*model.tokenizer.encode(path.prompt).tolist(), *path.token_ids.tolist()]
        assert path.prompt + path.text == model.tokenizer.decode(whole)
