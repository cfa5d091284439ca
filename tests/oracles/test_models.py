"""What a model remembers, writes and scores: slot by slot, all of it computed anew."""

import cmath
import math

import numpy as np
import torch
from bounds import exact
from hypothesis import given
from hypothesis import strategies as st

from oracles.cases import SCALES, cases
from softar_lab import SoftAR, Window, generate
from softar_lab.counting.exact import CountingModel
from softar_lab.models.config import ModelConfig
from softar_lab.models.scoring import char_log_probs

seeds = st.integers(0, 2**32 - 1)
LETTERS = "abcdefghijk \n"


def unit_sums(values, rate, count):
    """Σ rate^age value / √(Σ |rate|^2age) of the latest `count` values, the last one of age 0."""
    powers = [rate**age for age in range(count - 1, -1, -1)]
    square = sum(abs(one) ** 2 for one in powers) if abs(abs(rate) - 1) > 1e-9 else count
    total = sum(p * v for p, v in zip(powers, values[len(values) - count :], strict=True))
    return total / max(1.0, math.sqrt(square))


def slots_of(memory, table, vectors):
    """The memory slots (slots, d) after the vectors (n, m), in float64, from the definitions."""
    mean = memory.prior.double().numpy() @ table
    tokens = vectors - mean
    n, width = tokens.shape
    kind = type(memory).__name__

    def features(bank):
        if kind == "Rotated":
            padded = np.pad(tokens, ((0, 0), (0, width % 2)))
            half = padded.shape[1] // 2
            return padded[:, :half] + 1j * padded[:, half:]
        if kind == "Bound":
            key, value = memory.binders.double().numpy()[:, bank]
            before = np.concatenate([np.zeros((1, width)), tokens])[:n]
            return (before @ key.T) * (tokens @ value.T)
        return tokens

    def rates(bank, size):
        if kind == "Rotated":
            return [cmath.exp(1j * one) for one in memory.angle[bank].tolist()]
        return [1 - (1 - memory.decay) / 4**bank if kind == "MovingAverage" else 1.0] * size

    def content(some, bank, count):
        rate = rates(bank, some.shape[1])
        parts = [unit_sums(some[:, j], rate[j], count) for j in range(some.shape[1])]
        if kind == "Rotated":
            return np.array([x for one in parts for x in (complex(one).real, complex(one).imag)])
        return np.array(parts)

    recent = memory.segments * memory.stretch
    older, found, counts = max(0, n - recent), [], []
    for bank in range(memory.aggregate):
        found.append(content(features(bank)[:older], bank, older))
        counts.append(older)
    for segment in range(memory.segments):
        end = n - (memory.segments - 1 - segment) * memory.stretch
        begin = max(0, end - memory.stretch)
        found.append(content(features(0)[begin : max(0, end)], 0, max(0, end) - begin))
        counts.append(max(0, end) - begin)
    maps, kinds, logs = (
        one.detach().double().numpy() for one in (memory.maps, memory.kinds, memory.counts)
    )
    slots = [c @ maps[i] + kinds[i] + math.log1p(counts[i]) * logs[i] for i, c in enumerate(found)]
    sizes = [np.abs(c) @ np.abs(maps[i]) for i, c in enumerate(found)]
    return np.array(slots), np.array(sizes)


def remembering(kind, aggregate, segments, stretch, width, seed, d=4, v=5):
    window = Window(aggregate, segments, hard=2, soft=0, stretch=stretch, kind=kind)
    config = ModelConfig(
        vocab_size=v, context=window.memory + 2, n_layers=1, n_heads=1, d_model=d,
        embedding_dim=width, window=window,
    )  # fmt: skip
    model = SoftAR(config, seed=seed % 1000)
    counts = torch.from_numpy(np.random.default_rng(seed).integers(1, 9, size=v)).float()
    model.memory.prior.copy_(counts / counts.sum())
    return model


def check_memory(model, vectors):
    with torch.no_grad():
        found = model.read_memory(model.update_memory(1, vectors=vectors[None]))[0]
    rows = model.embedding.detach().double().numpy()
    slots, sizes = slots_of(model.memory, rows, vectors.double().numpy())
    # the mean of the rows is rounded in float32, and so are the contents and their map
    width = model.memory.maps.shape[1]
    size = float(vectors.abs().amax()) if len(vectors) else 0.0
    bound = (width + 8) * 2.0**-23 * (sizes + (1 + size) ** 2 * len(vectors))
    assert (np.abs(found.numpy() - slots) <= bound + 1e-6).all()


@given(
    st.sampled_from(["sum", "ema(0.9)", "ema(0.999999999999)", "ema(1e-300)", "rotated", "bound(3)"]),
    st.integers(0, 2), st.integers(0, 2), st.integers(1, 3), st.integers(1, 5), st.integers(0, 12),
    st.sampled_from([s for s in SCALES if s <= 1000]), seeds,
)  # fmt: skip
@cases("memory")
def test_memory(kind, aggregate, segments, stretch, width, length, scale, seed):
    if aggregate + segments == 0 or (kind == "sum" and aggregate > 1):
        return
    model = remembering(kind, aggregate, segments, stretch, width, seed)
    vectors = scale * torch.randn(
        length, width, generator=torch.Generator().manual_seed(seed % 2**31)
    )
    check_memory(model, vectors)


def test_memory_of_many_rotated_tokens_is_divided_by_the_root_of_their_number():
    """A computed |rate|² of 1 - 2^-53 is 1, too: 256 angles, of which some round so."""
    model = remembering("rotated", 1, 2, 3, 256, 0)
    check_memory(model, torch.randn(300, 256, generator=torch.Generator().manual_seed(0)))


def begin_of(length, model):
    """Where the window begins that holds the latest of `length` tokens."""
    c, kept, begin = model.config.tokens, model.config.overlap, 0
    while length - begin > c:
        begin += c + 1 - kept
    return begin


@given(
    st.sampled_from(["ce", "mse"]), st.sampled_from(["always", "never", "every(2)", "distance(0.5)", "entropy(1.5)"]),
    st.sampled_from(["mixture", "raw", "shown"]), st.sampled_from(["softmax", "nearest"]),
    st.sampled_from([0, 0.7, 1]), st.integers(1, 16), st.integers(0, 2**20),
)  # fmt: skip
@cases("generation")
def test_generation(tiny, objective, when, what, how, temperature, steps, seed):
    """Each step once more from its own history, without a cache; the history is the recorded one,
    so that no rounding adds up.
    """
    with torch.inference_mode(False):
        model = tiny(objective=objective, scale=0.15)
    atol = 4 * exact(model)["atol"]
    prompts, table = ["", "abcde"], model.embedding.detach()
    choices = {"schedule": when, "feedback": what, "collapse": how, "temperature": temperature}
    both = generate(model, prompts, steps, seed=[seed, seed + 1], **choices)
    for row, (prompt, one) in enumerate(zip(prompts, both, strict=True)):
        uniform = torch.rand(
            steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + row)
        )
        history = torch.cat([table[model.tokenizer.encode(prompt)], one.inputs])
        for t in range(steps):
            end = len(prompt) + t
            with torch.no_grad():
                read = history[begin_of(end, model) : end]
                hidden = model.hidden_states(vectors=read[None])[:, -1]
                prediction = model.objective.predict(hidden, table)
            log_p, y = prediction.log_probs[0].double(), prediction.vector[0].double()
            symbol = int(one.token_ids[t])
            torch.testing.assert_close(one.vectors[t].double(), y, atol=atol, rtol=0)
            assert abs(float(one.log_probs[t] - log_p[symbol])) <= atol
            entropy = float(-(log_p.exp() * log_p).sum())
            assert abs(float(one.entropy[t]) - entropy) <= atol
            away = (table.double() - y).norm(dim=-1)
            assert abs(float(one.distance[t] - away.min())) <= atol
            if how == "nearest":
                assert away[symbol] <= away.min() + 2 * atol
            elif temperature == 0:
                assert log_p[symbol] >= log_p.max() - 2 * atol
            else:
                shares = torch.softmax(log_p / temperature, -1).cumsum(-1)
                slack = 2 * atol / temperature
                assert shares[symbol] + slack >= uniform[t]
                assert symbol == 0 or shares[symbol - 1] - slack <= uniform[t]
            measure = {"distance(0.5)": float(away.min()) - 0.5, "entropy(1.5)": entropy - 1.5}
            hard = {"always": True, "never": False, "every(2)": t % 2 == 1}.get(when)
            if hard is None:
                hard = measure[when] > 0 if abs(measure[when]) > atol else bool(one.collapsed[t])
            soft = {
                "mixture": log_p.exp() @ table.double(),
                "raw": y,
                "shown": table[symbol].double(),
            }
            expected = table[symbol].double() if hard else soft[what]
            assert bool(one.collapsed[t]) is hard
            torch.testing.assert_close(one.inputs[t].double(), expected, atol=atol, rtol=0)


def pieces(ids, context, separator):
    """(token, first token read before it) for every token that is scored."""
    n = len(ids)
    if separator is None:
        return [(j, 0 if context is None else (j - 1) // context * context) for j in range(1, n)]
    found, begin = [], 0
    documents = [j + 1 for j, one in enumerate(ids) if one == separator]
    ends = sorted({*documents, n})
    while begin < n:
        if context is None:
            end = min(e for e in ends if e > begin)
        else:
            fitting = [e for e in ends if begin < e <= begin + context + 1]
            end = max(fitting) if fitting else begin + context + 1
        found += [(j, begin) for j in range(begin, end)]
        begin = end
    return found


@given(
    st.text("abc\n", min_size=2, max_size=30), st.booleans(), st.sampled_from(["soft", "counts"])
)
@cases("scoring")
def test_scoring(tiny, text, documents, which):
    separator = "\n" if documents else None
    if which == "soft":
        with torch.inference_mode(False):
            model = tiny(scale=0.15)
        atol = 4 * exact(model)["atol"]
    else:
        model, atol = CountingModel.fit([LETTERS * 3], 2, "witten-bell"), 1e-13
    ids = model.tokenizer.encode(text)
    expected = []
    mark = int(model.tokenizer.encode("\n")[0]) if documents else None
    for j, first in pieces(ids.tolist(), model.context, mark):
        state = model.start(1)
        for token in ids[first:j]:
            state = model.advance(state, token_ids=token[None])
        expected.append(float(model.predict(state).log_probs[0, ids[j]]))
    found = char_log_probs(model, text, separator)
    np.testing.assert_allclose(found.detach(), expected, atol=atol, rtol=0)
