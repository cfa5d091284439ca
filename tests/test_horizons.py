"""Levels (K22, K24): what each head is trained for, what is read from it, and what it leaves alone."""

import math
from itertools import product

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from softar_lab.core.store import CheckpointError
from softar_lab.data.corpora import Corpus
from softar_lab.data.languages import Markov
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import generate
from softar_lab.metrics import lookahead
from softar_lab.models.config import ModelConfig
from softar_lab.models.levels import Span, SumLevel
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_lab.training.heads import train_levels
from softar_lab.training.loop import train
from softar_lab.training.update import active_levels
from tests.conftest import LETTERS, enliven

KINDS = ("ahead", "sum", "bound", "multi-token(4)", "recurrent(4)")
SHAPE = {"context": 12, "n_layers": 3, "n_heads": 2, "d_model": 16, "table": "random"}
TEXT = Corpus("abc", "abc abd abe\n" * 300, "abd abc\n" * 40, "abe\n" * 40)
BRIEF = {"steps": 6, "batch_size": 4, "eval_every": 0, "save_every": 3, "precision": "fp32"}


def made(levels, seed=0, **changes):
    config = ModelConfig(vocab_size=len(LETTERS), levels=levels, **{**SHAPE, **changes})
    return SoftAR(config, CharTokenizer.fit(LETTERS), seed)


def alive(levels, **changes):
    model = enliven(made(levels, **changes), 1, 0.3)
    for name, buffer in model.levels.named_buffers():
        if name.endswith(("weight", "bias")):
            buffer.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    return model


def drawn(rows=5, length=12, seed=0):
    return torch.randint(13, (rows, length), generator=torch.Generator().manual_seed(seed))


# what is read where


def test_the_levels_of_the_idea():
    spans = made("ahead", n_layers=4).levels.spans
    assert spans == [Span(1, 1, 1), Span(2, 2, 2), Span(3, 4, 4), Span(4, 8, 8)]
    assert made("sum", n_layers=4).levels.spans == [Span(i + 1, 1, 2**i) for i in range(4)]
    assert made("bound(3)").levels.spans[-9:] == [Span(3, k, k) for k in range(1, 10)]
    assert made("multi-token(4)").levels.spans == [Span(3, k, k) for k in (2, 3, 4)]
    assert made("ahead(1)").levels.spans == [Span(i, 1, 1) for i in (1, 2, 3)]


@pytest.mark.parametrize("levels", KINDS)
def test_a_config_holds_every_parameter(levels):
    config = made(levels).config
    assert config.levels == "recurrent(4)" or config.levels.count("=") == 2
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("far", "unknown levels 'far'; known: ahead, sum, bound, multi-token, recurrent"),
        ("ahead(0)", "growth must be a whole number of at least 1, not 0"),
        ("ahead(100)", "reaches 10000 steps ahead; at most 4096"),
        ("multi-token(1)", "reach must be a whole number of at least 2"),
        ("ahead(2, 'magic')", "unknown objective 'magic'"),
        ("sum(2, 'magic')", "unknown readout 'magic'"),
    ],
)
def test_what_cannot_be_a_level_is_refused_by_name(levels, message):
    with pytest.raises(ValueError, match=message):
        made(levels)


# what they are trained for


@torch.no_grad()
def test_a_symbol_level_predicts_exactly_that_symbol():
    model, ids = alive("ahead"), drawn()
    states = model.layer_states(ids[:, :-1])
    loss = model.levels.loss(states, ids, model.table.weight, torch.Generator(), 3)
    wanted = 0.0
    for level, k in zip(model.levels.levels, (1, 2, 4), strict=True):
        state = states[level.layer - 1].double()
        if level.layer < 3:
            centred = state - state.mean(-1, keepdim=True)
            state = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        logits = state @ level.objective.head.weight.double().T
        terms = [
            -logits[b, t].log_softmax(-1)[ids[b, t + k - 1]]
            for b, t in product(range(5), range(12 - k + 1))
        ]
        wanted += sum(terms) / len(terms) / 3
    assert math.isclose(loss.item(), float(wanted), rel_tol=1e-5)


@pytest.mark.parametrize("bound", [False, True])
def test_the_target_of_a_sum(bound):
    config = made("bound", embedding_dim=7).config  # odd: the last coordinate has no pair
    level, ids = SumLevel(config, 1, 3, bound, "affine").double(), drawn(2, 6)
    table = torch.randn(13, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = level.targets(ids, table)
    assert found.shape == (2, 4, 7)
    for b, t in product(range(2), range(4)):
        wanted = torch.zeros(7, dtype=torch.float64)
        for j in (1, 2, 3):
            row = table[ids[b, t + j - 1]].clone()
            if bound:
                for pair, angle in enumerate((j * level.angle).tolist()):
                    x, y = row[2 * pair : 2 * pair + 2].tolist()
                    row[2 * pair] = math.cos(angle) * x - math.sin(angle) * y
                    row[2 * pair + 1] = math.sin(angle) * x + math.cos(angle) * y
            wanted += row
        torch.testing.assert_close(found[b, t], wanted)
        # turned back, each of them is there, below what the others add
        back = level.turned(found[b, t], -2) - table[ids[b, t + 1]]
        others = wanted - level.turned(table[ids[b, t + 1]], 2)
        torch.testing.assert_close(back, level.turned(others, -2))


def test_a_sum_of_which_nothing_is_missing_costs_nothing():
    model, ids = alive("bound"), drawn()
    level = model.levels.levels[1]
    targets = level.targets(ids, model.table.weight)
    level.output = lambda hidden: targets  # the perfect head
    hidden = torch.zeros(5, 12, 16)
    assert level.loss(hidden, ids, model.table.weight, torch.Generator()).item() == 0


@pytest.mark.parametrize("levels", ["multi-token(4)", "bound"])
def test_proposals_are_the_readings_of_the_top_layer(levels):
    model, hidden = alive(levels), torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    states = [torch.zeros(6, 16), torch.zeros(6, 16), hidden]
    with torch.inference_mode():
        read = model.levels.log_probs(states, model.table.weight)
        maps = model.levels.proposals(model.table.weight)
    assert len(maps) == 3
    for k, (matrix, bias) in enumerate(maps, 2):
        # two orders of the same sums of at most 16 + 16 + 13 products of numbers of about 1
        torch.testing.assert_close(
            (hidden @ matrix + bias).log_softmax(-1), read[Span(3, k, k)], atol=1e-4, rtol=0
        )


def test_ahead_and_sum_propose_nothing():
    assert [
        len(made(kind).levels.proposals(made(kind).embedding)) for kind in ("ahead", "sum")
    ] == [
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("share", "wanted"),
    [(0.0, [4] * 8), (0.5, [1, 2, 3, 4, 4, 4, 4, 4]), (0.99, [1, 1, 2, 2, 3, 3, 4, 4])],
)
def test_a_curriculum_switches_levels_on_one_by_one(share, wanted):
    config = TrainConfig(steps=8, level_curriculum=share)
    assert [active_levels(4, step, config) for step in range(8)] == wanted


def test_a_level_that_is_off_learns_nothing():
    model = made("ahead")
    train(
        model, TEXT, TrainConfig(**{**BRIEF, "level_curriculum": 0.99, "steps": 2}), progress=False
    )
    first, *rest = (one.objective.head.weight for one in model.levels.levels)
    assert first.abs().max() > 0
    assert rest[1].abs().max() == 0


# what they leave alone


@pytest.mark.parametrize("levels", KINDS)
def test_levels_change_no_first_weight_and_no_batch(levels):
    plain, other = made(None, seed=3), made(levels, seed=3)
    theirs = other.state_dict()
    assert all(torch.equal(one, theirs[name]) for name, one in plain.state_dict().items())
    # levels that weigh nothing leave the training of the rest as it is, to the bit
    config = TrainConfig(**BRIEF)
    for model in (plain, other):
        weight = {"level_weight": 0.0} if model.levels else {}
        train(model, TEXT, TrainConfig(**{**BRIEF, **weight}), progress=False, device="cpu")
    theirs = other.state_dict()
    assert all(torch.equal(one, theirs[name]) for name, one in plain.state_dict().items())
    assert generate(plain, "ab", 20).text == generate(other, "ab", 20).text
    assert config.level_weight == 1.0


@torch.no_grad()
def test_layer_states_are_those_of_the_forward_pass():
    model, ids = alive("ahead"), drawn(2, 8)
    states = model.layer_states(ids)
    assert torch.equal(states[-1], model.hidden_states(ids))
    assert len(states) == 3
    # the last layer's state, before the norm, follows from the one before
    _x, rotation, mask = model.body._enter(torch.zeros(1, 9, 16), 0)
    whole = torch.cat([model.body.start.expand(2, 1, -1), model.input(model.embedding[ids])], 1)
    for block, state in zip(model.body.blocks, states, strict=True):
        whole = block(whole, rotation, None, mask)
        if block is not model.body.blocks[-1]:
            assert torch.equal(whole, state)


# on disk


@pytest.mark.parametrize("levels", ["ahead", "sum(2, 'tau')", "bound(2, 'tau')", "multi-token(4)"])
def test_a_run_with_levels_is_resumed_exactly_and_compared(levels, tmp_path):
    config = TrainConfig(**{**BRIEF, "level_curriculum": 0.5})
    whole = made(levels)
    train(whole, TEXT, config, progress=False, device="cpu")

    def stop(event):
        return event["step"] == 3

    train(made(levels), TEXT, config, out=tmp_path, progress=False, device="cpu", on_step=stop)
    resumed = made(levels)
    train(resumed, TEXT, config, out=tmp_path, progress=False, device="cpu")
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, SoftAR.load(tmp_path, "cpu").state_dict()[name]), name
    with pytest.raises(CheckpointError, match="levels: saved"):
        train(made(None), TEXT, config, out=tmp_path, progress=False, device="cpu")
    other = TrainConfig(**{**BRIEF, "level_weight": 0.5})
    with pytest.raises(CheckpointError, match="level_curriculum: saved 0.5"):
        train(made(levels), TEXT, other, out=tmp_path, progress=False, device="cpu")


# how they are judged


def test_excess_is_zero_where_a_model_knows_the_truth_and_the_divergence_elsewhere():
    chain = Markov.random(5, 1, seed=2)
    config = ModelConfig(
        vocab_size=5, levels="ahead", context=9, n_layers=2, n_heads=1, d_model=4, table="random"
    )
    model = SoftAR(config, chain.tokenizer)  # heads of zeros: every reading is uniform
    rows = chain.sample(8, batch_size=3, seed=1)
    found = lookahead.excess_ahead(model, chain, rows)
    assert found[["of", "layer", "first", "last"]].values.tolist() == [
        ["objective", 2, 1, 1],
        ["levels", 1, 1, 1],
        ["levels", 2, 2, 2],
    ]
    # KL(q || uniform) = log V - H(q)
    assert torch.allclose(
        torch.tensor((found["excess"] + found["floor"]).values),
        torch.tensor(math.log2(5), dtype=torch.float64),
    )
    law = chain.ahead_probs(rows, (2,))[0].flatten(0, 1)
    entropy = -(law * law.clamp_min(1e-300).log2()).sum(-1).mean().item()
    assert math.isclose(found["floor"].iloc[2], entropy, rel_tol=1e-9)


LOSSES = torch.tensor([[0.5, 2.0, 0.1, 3.0], [0.4, 0.9, 0.3, 0.2], [0.3, 0.8, 0.2, 0.1]])


def test_curves_by_every_choice_of_layers():
    points = []
    for at in product(range(3), repeat=4):
        lost = sum(float(LOSSES[layer, n] - LOSSES[-1, n]) for n, layer in enumerate(at)) / 4
        points.append((1 - sum(layer + 1 for layer in at) / 12, lost))
    oracle = lookahead.oracle_curve(LOSSES)
    for saved, lost in oracle[["saved", "lost"]].values:
        # no choice saves more for less
        assert not any(s > saved + 1e-6 and loses < lost - 1e-6 for s, loses in points)
    assert lookahead.saved_at(oracle, 10.0) == pytest.approx(2 / 3)
    control = lookahead.random_curve(LOSSES)
    means = LOSSES.mean(1)
    assert control["lost"].iloc[0] == pytest.approx(0)
    assert control["lost"].iloc[-1] == pytest.approx(float(means[0] - means[2]))
    assert (control["lost"].diff().dropna() >= -1e-6).all()
    # by definition: the least mean loss of all mixtures of layers that save such a share
    mixtures = [(a, b, 1 - a - b) for a, b in product([i / 40 for i in range(41)], repeat=2)]
    mixtures = torch.tensor([one for one in mixtures if one[2] > -1e-9], dtype=torch.float64)
    saves = mixtures @ torch.tensor([2 / 3, 1 / 3, 0], dtype=torch.float64)
    loses = mixtures @ (means - means[2]).double()
    for saved in (1 / 60, 1 / 4, 1 / 2):
        least = loses[(saves - saved).abs() < 1e-9].min()
        near = control["lost"][(control["saved"] - saved).abs().argmin()]
        assert near == pytest.approx(float(least), abs=1e-3)  # half a step of the grid


def test_an_exit_curve_follows_its_thresholds():
    confidence = torch.tensor([[0.9, 0.1, 0.8, 0.2], [0.95, 0.6, 0.9, 0.3]])
    curve = lookahead.exit_curve(confidence, LOSSES)
    assert curve.iloc[0].to_dict() == {"threshold": math.inf, "saved": 0.0, "lost": 0.0}
    at = {t: confidence.ge(t) for t in (0.8, 0.5)}
    layers = {0.8: [0, 2, 0, 2], 0.5: [0, 1, 0, 2]}
    for threshold, leaves in at.items():
        chosen = torch.where(leaves.any(0), leaves.float().argmax(0), 2).tolist()
        assert chosen == layers[threshold]
        lost = sum(float(LOSSES[c, n] - LOSSES[2, n]) for n, c in enumerate(chosen)) / 4
        saved = 1 - sum(c + 1 for c in chosen) / 12
        near = curve.iloc[(curve["saved"] - saved).abs().argmin()]
        assert near["saved"] == pytest.approx(saved)
        assert near["lost"] == pytest.approx(lost, abs=1e-6)
    assert isinstance(curve, pd.DataFrame)


def test_layers_are_read_as_the_heads_read_them():
    from softar_lab.models.exit_heads import ExitHeads

    model = alive("ahead")
    with pytest.raises(ValueError, match="no exit heads"):
        lookahead.Layers.of(model, drawn())
    model.exits = ExitHeads(3, 16, 13)
    layers = lookahead.Layers.of(model, drawn())
    assert layers.log_probs.shape == (3, 60, 13)
    assert torch.allclose(layers.losses[0], torch.tensor(math.log2(13)))
    wanted = F.cross_entropy(layers.log_probs[2], layers.target_ids) / math.log(2)
    assert torch.allclose(layers.losses[2].mean(), wanted)
    assert layers.regret[2].abs().max() == 0
    assert (layers.regret[0] > -1e-6).all()


# added to a trained model


def test_levels_added_later_leave_the_model_as_it_is():
    model, brief = enliven(made("ahead"), 1, 0.2), {"steps": 5, "tokens": 400}
    added = train_levels(model, TEXT, "recurrent(3)", seed=4, **brief)
    assert added.config.levels.startswith("recurrent")
    assert model.config.levels.startswith("ahead")
    theirs = added.state_dict()
    for name, one in model.state_dict().items():
        assert name.startswith("levels.") or torch.equal(one, theirs[name]), name
    assert generate(model, "ab", 20, seed=1).text == generate(added, "ab", 20, seed=1).text
    assert added.card["levels"] == {"corpus": TEXT.sha256, "steps": 5, "seed": 4}
    # the seed decides everything, and the heads have learned something
    again = train_levels(model, TEXT, "recurrent(3)", seed=4, **brief).levels
    first = made("recurrent(3)", seed=4).levels
    for name, one in added.levels.state_dict().items():
        assert torch.equal(one, again.state_dict()[name])
        assert not torch.equal(one, first.state_dict()[name])
    with pytest.raises(ValueError, match="unknown levels 'far'"):
        train_levels(model, TEXT, "far", **brief)
    windowed = made(None, window="window(1, 2, 4)", context=24)
    with pytest.raises(ValueError, match="levels are for plain windows"):
        train_levels(windowed, TEXT, "ahead", **brief)
