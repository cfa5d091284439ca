"""Corpora: the same text everywhere, errors that help, and nothing left behind."""

import math
import os
import threading
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jaxtyping
import pooch
import pytest

from softar_lab.core.store import cache_folder
from softar_lab.data import corpora, stories
from softar_lab.data.corpora import Corpus, CorpusError, load_corpus
from softar_lab.data.languages.tales import TALES

LINES = "".join(f"line {i} says little\n" for i in range(1_000))


@pytest.fixture(scope="module")
def tales():
    return load_corpus("tales")


@pytest.fixture
def text_file(tmp_path):
    def write(content, name="my.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# tales


def test_load_corpus_tells_the_same_tales_everywhere(tales):
    assert tales.sha256 == "976f88f60d91ef7827ae5af6f031cd798a950e138b36b4215603d2d2a85b503b"


def test_load_corpus_tales_has_the_floor_of_its_grammar(tales):
    bits = -math.fsum(TALES.log_prob(story) for story in tales.documents("val")) / math.log(2)
    assert math.isclose(tales.floor_bits_per_char, bits / len(tales.val), rel_tol=1e-9)


def test_load_corpus_tales_has_whole_stories_of_the_right_amount(tales):
    for split, size in {"train": 1_000_000, "val": 60_000, "test": 60_000}.items():
        assert 0 <= len(getattr(tales, split)) - size < 400
        assert getattr(tales, split).endswith(".\n")


def test_load_corpus_tales_keeps_its_splits_apart(tales):
    told = set(tales.documents("train"))
    assert told.isdisjoint(tales.documents("val"))
    assert told.isdisjoint(tales.documents("test"))
    assert set(tales.documents("val")).isdisjoint(tales.documents("test"))
    assert set(tales.val + tales.test) <= set(tales.train)


def test_load_corpus_tales_differs_by_seed(tales, monkeypatch):
    monkeypatch.setattr(corpora, "_TALES_CHARS", {"train": 3_000, "val": 1_000, "test": 1_000})
    short = [corpora._tales.__wrapped__(seed) for seed in (0, 1)]  # past the cache
    assert short[0].train != short[1].train
    assert tales.train.startswith(short[0].train)


# running text


def test_load_corpus_cuts_a_file_as_nanogpt_does(text_file):
    corpus = load_corpus(text_file(LINES))
    n = len(LINES)
    assert corpus.name == "my.txt"
    assert corpus.val == LINES[int(0.9 * n) :]
    assert corpus.test + corpus.train + corpus.val == LINES
    assert len(corpus.test) == int(0.05 * n)
    assert corpus.floor_bits_per_char is None
    assert corpus.documents("val") == [corpus.val]


def test_load_corpus_rotates_by_seed_at_a_line(text_file):
    path = text_file(LINES)
    corpora_ = [load_corpus(str(path), seed=seed) for seed in range(6)]
    for corpus in corpora_:
        assert corpus.test.startswith("line ")
        whole = corpus.test + corpus.train + corpus.val
        assert whole in LINES * 2
        assert len(whole) == len(LINES)
        assert [len(corpus.train), len(corpus.val)] == [
            len(corpora_[0].train),
            len(corpora_[0].val),
        ]
    assert len({corpus.sha256 for corpus in corpora_}) == 6
    assert load_corpus(path, seed=3) == corpora_[3]


def test_load_corpus_refuses_another_seed_of_a_single_line(text_file):
    path = text_file("x" * 100)
    assert load_corpus(path).train == "x" * 85
    with pytest.raises(CorpusError, match="single line"):
        load_corpus(path, seed=1)


def test_load_corpus_changes_only_line_ends_and_byte_order_mark(text_file):
    text = "\ufeffa\r\nb\rc\n\ufeff\u0301é🙂\t \n" * 20
    corpus = load_corpus(text_file(text))
    assert corpus.test + corpus.train + corpus.val == text[1:].replace("\r\n", "\n")


@pytest.mark.parametrize("size", range(1, 41))
def test_load_corpus_names_a_text_that_is_too_short(text_file, size):
    path = text_file("x" * size)
    if int(0.05 * size) == 0:
        assert size < 20
        with pytest.raises(CorpusError, match=f"{size} characters, 20 always suffice"):
            load_corpus(path)
    else:
        corpus = load_corpus(path)
        assert min(map(len, (corpus.train, corpus.test, corpus.val))) > 0


def test_load_corpus_names_what_is_wrong_with_a_file(text_file, tmp_path):
    with pytest.raises(
        CorpusError, match=r"nowhere\.txt is neither .*shakespeare, tales, tales-words, topics"
    ):
        load_corpus(tmp_path / "nowhere.txt")
    with pytest.raises(
        CorpusError, match=r"tails is neither a file nor .*shakespeare, tales, tales-words, topics"
    ):
        load_corpus("tails")
    with pytest.raises(CorpusError, match="is a folder"):
        load_corpus(tmp_path)
    with pytest.raises(CorpusError, match=r"latin\.txt is not UTF-8: .* at byte 7"):
        load_corpus(text_file(b"\xef\xbb\xbfabcd\xe9 and so on", "latin.txt"))
    with pytest.raises(CorpusError, match=r"If it is utf-16, save it as UTF-8: path.write_text"):
        load_corpus(text_file("the king".encode("utf-16"), "wide.txt"))
    for nothing in ("", "\ufeff"):
        with pytest.raises(CorpusError, match=r"empty\.txt is empty"):
            load_corpus(text_file(nothing, "empty.txt"))
    with pytest.raises(CorpusError, match="cannot be read"):
        load_corpus("nul\0.txt")


def test_load_corpus_reads_topics_from_python_itself():
    corpus = load_corpus("topics")
    assert len(corpus.test + corpus.train + corpus.val) > 300_000
    assert "assert" in corpus.train


# shakespeare


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Serve some bytes at the corpus's address; yields (an empty cache folder, the requests so
    far).
    """
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"To be, or not to be\n" * 50)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("SOFTAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        corpora, "SHAKESPEARE_URL", f"http://127.0.0.1:{server.server_port}/input.txt"
    )
    yield tmp_path / "cache", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_load_corpus_fetches_shakespeare_once(serve, monkeypatch, capfd):
    folder, requests = serve
    monkeypatch.setattr(
        corpora, "SHAKESPEARE_SHA256", sha256(b"To be, or not to be\n" * 50).hexdigest()
    )
    assert load_corpus("shakespeare") == load_corpus("shakespeare")
    assert requests == ["/input.txt"]
    assert [path.name for path in folder.iterdir()] == ["tinyshakespeare.txt"]
    assert capfd.readouterr() == ("", "")


def test_load_corpus_leaves_nothing_of_a_wrong_download(serve):
    folder, requests = serve
    with pytest.raises(CorpusError, match=r"could not be fetched.*hash"):
        load_corpus("shakespeare")
    assert requests
    assert list(folder.iterdir()) == []


def test_load_corpus_says_where_to_put_shakespeare_by_hand(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setenv("SOFTAR_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(CorpusError) as error:
        load_corpus("shakespeare")
    for told in (
        str(tmp_path / "tinyshakespeare.txt"),
        "1,115,394",
        corpora.SHAKESPEARE_SHA256,
        "no network",
    ):
        assert told in str(error.value)


def test_load_corpus_refuses_another_shakespeare(monkeypatch, tmp_path):
    path = tmp_path / "tinyshakespeare.txt"
    path.write_bytes(b"To be\n")
    monkeypatch.setenv("SOFTAR_CACHE", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", None)  # not to be called
    with pytest.raises(CorpusError) as error:
        load_corpus("shakespeare")
    for told in (str(path), corpora.SHAKESPEARE_SHA256, sha256(b"To be\n").hexdigest()):
        assert told in str(error.value)
    assert path.read_bytes() == b"To be\n"


def test_load_corpus_cuts_shakespeare_as_nanogpt_does():
    folder = Path(os.environ.get("SOFTAR_CACHE") or pooch.os_cache("softar-lab"))
    if not (folder / corpora.SHAKESPEARE_FILE).is_file():
        pytest.skip(f"{corpora.SHAKESPEARE_FILE} is not in the cache folder")
    corpus = load_corpus("shakespeare")
    assert len(corpus.val) == 111_540  # what nanoGPT's prepare.py prints
    assert corpus.test.startswith("First Citizen:\nBefore we proceed")
    assert len(set(corpus.train)) == 65


# Corpus


def test_sha256_tells_contents_apart_and_not_names():
    assert Corpus("a", "x", "y", "z").sha256 == Corpus("b", "x", "y", "z").sha256
    different = [("xy", "y", "z"), ("x", "yy", "z"), ("y", "x", "z"), ("x", "y", "yz")]
    assert len({Corpus("a", *splits).sha256 for splits in [("x", "y", "z"), *different]}) == 5


def test_documents_join_to_the_split():
    corpus = Corpus("c", "one\ntwo\n", "three\n\nfour", "five\n", separator="\n")
    assert corpus.documents("train") == ["one\n", "two\n"]
    assert corpus.documents("val") == ["three\n", "\n", "four"]
    assert Corpus("c", "one\ntwo\n", "v", "t").documents("train") == ["one\ntwo\n"]
    with pytest.raises(ValueError, match="split must be one of train, val, test, not 'dev'"):
        corpus.documents("dev")


def test_corpus_refuses_an_empty_split():
    with pytest.raises(CorpusError, match="the split 'test' is empty"):
        Corpus("c", "x", "y", "")


def test_repr_never_shows_the_text(tales):
    assert len(repr(tales)) < 150
    assert "Once" not in repr(tales)


def test_the_cache_folder_may_lie_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOFTAR_CACHE", "~/texts")
    assert cache_folder() == tmp_path / "texts"


def test_corpora_of_two_seeds_share_no_stories(monkeypatch):
    """Each asks for streams of its own; seed 0 asks for those that the checkpoint was trained on."""
    asked, alphabet = {}, corpora.tales_words()
    monkeypatch.setattr(corpora, "_tales", lambda seed: named(f"tales/{seed}/train", seed))
    for seed in (0, 1, 5):
        streams = []
        monkeypatch.setattr(
            corpora, "stories", lambda name, chars, s=streams: s.append(name) or STORY
        )
        base = corpora._tales_words.__wrapped__(seed)
        asked[seed] = {*streams, base.name} - {"tales-words"}
        assert base.separator == alphabet.encode("\n")
    assert asked[0] == {f"tales/{i}/train" for i in (1, 2, 3)}
    assert not asked[0] & asked[1]
    assert not asked[1] & asked[5]
    assert "tales/0/train" not in asked[1] | asked[5]


STORY = "One day the king had a ball.\n"


def named(name, seed):
    return Corpus(name, STORY, STORY, STORY, floor_bits_per_char=1.0, separator="\n")


@pytest.mark.parametrize("wrong", [None, 5, b"text", ["text"]])
@pytest.mark.parametrize("name", ["train", "val", "test", "separator"])
def test_corpus_is_made_of_texts(name, wrong, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    parts = {"train": "a", "val": "a", "test": "a", "separator": None, name: wrong}
    if name == "separator" and wrong is None:
        return
    with pytest.raises(CorpusError, match=f"odd: {name} must be a text, not"):
        Corpus("odd", **parts)


def test_stories_are_drawn_once_and_a_damaged_file_is_drawn_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTAR_CACHE", str(tmp_path))
    first = stories.stories("seed", 500)
    assert first == stories.drawn("seed", 500)
    with monkeypatch.context() as patch:
        patch.setattr(stories, "drawn", None)  # not to be called
        assert stories.stories("seed", 500) == first
    [path] = tmp_path.glob("*/*")
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole.replace(b"e", b"a", 1), b"", b"\xff" * 99):
        path.write_bytes(damaged)
        assert stories.stories("seed", 500) == first
        assert path.read_bytes() == whole


def test_stories_depend_on_name_length_and_grammar(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTAR_CACHE", str(tmp_path))
    first = stories.stories("seed", 500)
    assert stories.stories("other", 500) != first
    assert stories.stories("seed", 900).startswith(first)
    monkeypatch.setattr(stories, "_grammar", lambda: "changed")
    monkeypatch.setattr(stories, "drawn", lambda name, chars: "another story")
    assert stories.stories("seed", 500) == "another story"


def test_stories_need_no_cache(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("SOFTAR_CACHE", str(blocked))
    assert stories.stories("seed", 500) == stories.drawn("seed", 500)
