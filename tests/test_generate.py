"""The one loop, held against doing it by hand, without cache and one prompt at a time."""

import gc
import math
import warnings
from itertools import cycle, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bounds import exact, rounding
from scipy.stats import chisquare
from test_predictor import Bigram

from conftest import EVERY_OBJECTIVE, LETTERS, OBJECTIVES, TABLES
from softar_lab.core.predictor import Prediction
from softar_lab.core.store import StoreError
from softar_lab.data.languages import Markov
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import Always, EveryK, Never, collapse, feedback, generate, schedule
from softar_lab.generation.run_context import RunContext
from softar_lab.generation.step_context import StepContext
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.models.vector_predictor import VectorPredictor

ARRAYS = ("vectors", "inputs", "log_probs", "entropy", "distance", "top_probs")
PROMPTS = ["abc", "", "kkkkkkkk", "a", "b d\nf"]
ALONE = [
    name for name in feedback.names() if not name.startswith("other")
]  # which takes its soft tokens from another row


class Chain(Bigram):
    """A predictor without vectors."""

    tokenizer = CharTokenizer.fit("abc")


def predicted_without_cache(model, inputs):
    """Predictions after 0, 1, … T slots (T, m), from one pass without cache."""
    return model.objective.predict(hidden_without_cache(model, inputs), model.table.weight)


def hidden_without_cache(model, inputs):
    """The body's output after 0, 1, … T slots, (T + 1, d)."""
    return model.hidden_states(vectors=inputs[None])[0].detach()


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "table"), list(product(OBJECTIVES, TABLES)))
def test_always_at_temperature_zero_is_greedy_decoding_by_hand(tiny, objective, table):
    model = tiny(objective=objective, table=table)
    token_ids = model.tokenizer.encode("abc")
    for _ in range(9):
        state = model.start()
        for token_id in token_ids:
            state = model.advance(state, token_ids=token_id[None])
        token_ids = torch.cat([token_ids, model.predict(state).log_probs.argmax(-1)])
    trajectory = generate(model, "abc", 9, temperature=0)
    assert "abc" + trajectory.text == model.tokenizer.decode(token_ids)
    assert trajectory.collapsed.all()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prompt", ["abc", ""])
def test_log_probs_are_the_models_own_of_the_whole_text(tiny, objective, prompt):
    model = tiny(objective=objective)
    trajectory = generate(model, prompt, 9, temperature=0.7, seed=3)
    found = model.log_probs(model.tokenizer.encode(prompt + trajectory.text)[None])[
        0, len(prompt) :
    ]
    torch.testing.assert_close(trajectory.log_probs, found.detach(), **exact(model))
    assert trajectory.log_probs.sum().item() == pytest.approx(found.sum().item(), abs=1e-3)


@pytest.mark.parametrize("what", ALONE)
@pytest.mark.parametrize("when", ["never", "every(3)", "every(1)", "always"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_inputs_recorded_are_what_was_fed_and_predictions_follow_from_them(
    tiny, objective, when, what
):
    model = tiny(objective=objective)
    trajectory = generate(model, "abc", 9, schedule=when, feedback=what, temperature=0.8, seed=1)
    prompt = model.embedding[model.tokenizer.encode("abc")]
    again = predicted_without_cache(model, torch.cat([prompt, trajectory.inputs[:-1]]))
    log_probs, vectors = again.log_probs[3:].detach(), again.vector[3:].detach()  # after the prompt
    torch.testing.assert_close(trajectory.vectors, vectors, **exact(model))
    shown = log_probs.gather(1, trajectory.token_ids[:, None]).squeeze(1)
    torch.testing.assert_close(trajectory.log_probs, shown, **exact(model))
    torch.testing.assert_close(
        trajectory.entropy, -(log_probs.exp() * log_probs).sum(-1), **exact(model)
    )
    nearest = (vectors[:, None] - model.embedding).norm(dim=-1).amin(-1)
    torch.testing.assert_close(trajectory.distance, nearest, **exact(model))
    hard = {"never": [], "every(3)": [2, 5, 8]}.get(when, range(9))
    assert trajectory.collapsed.nonzero().flatten().tolist() == list(hard)
    state = SimpleNamespace(
        hidden=hidden_without_cache(model, torch.cat([prompt, trajectory.inputs[:-1]]))[3:]
    )
    context = StepContext(
        torch.arange(9),
        Prediction(log_probs, vectors),
        log_probs,
        trajectory.token_ids,
        model.embedding,
        (1,) * 9,
        state=state,
        run=RunContext(model, 9),
    )
    before = torch.cat([prompt[-1:], trajectory.inputs[:-1]])  # what each step had read last
    soft = {
        "raw": vectors,
        "mixture": log_probs.exp() @ model.embedding,
        "projected": torch.lerp(before, vectors, 0.5),
    }.get(what)
    soft = (
        feedback.resolve(what)(context) if soft is None else soft
    )  # seed and step decide its noise
    rows = model.embedding[trajectory.token_ids]
    expected = torch.where(trajectory.collapsed[:, None], rows, soft)
    torch.testing.assert_close(trajectory.inputs, expected, **exact(model))


def test_trajectory_tells_its_text_candidates_and_settings(tiny):
    model = tiny(objective="mse")
    trajectory = generate(
        model, "ab", 6, collapse="nearest", schedule=EveryK(2), feedback="raw", temperature=0.5
    )
    assert trajectory.text == model.tokenizer.decode(trajectory.token_ids)
    assert (trajectory.prompt, len(trajectory)) == ("ab", 6)
    expected = {
        "collapse": "nearest('l2')",
        "schedule": "every(2)",
        "feedback": "raw",
        "temperature": 0.5,
        "steps": 6,
    }
    assert expected.items() <= trajectory.settings.items()
    assert (trajectory.top_probs.diff(dim=1) <= 0).all()
    assert trajectory.top_ids.shape == (6, 8)
    best, p = trajectory.candidates(0)[0]
    assert best == model.tokenizer.tokens[trajectory.top_ids[0, 0]]
    assert p == pytest.approx(
        model.probs(model.read(model.start(), model.tokenizer.encode("ab")[None])).max().item()
    )
    assert trajectory.vectors.dtype == torch.float32
    assert not any(
        getattr(trajectory, name).is_inference() for name in ARRAYS
    )  # one may go on computing with them


def test_instances_and_names_mean_the_same(tiny):
    model = tiny(objective="mse")
    for name, instance in (("always", Always()), ("never", Never()), ("every(3)", EveryK(3))):
        one = generate(model, "ab", 7, schedule=name, feedback="raw", collapse="nearest")
        other = generate(
            model, "ab", 7, schedule=instance, feedback=feedback.Raw(), collapse=collapse.Nearest()
        )
        assert one.text == other.text
        assert one.settings == other.settings


def test_a_collapse_of_three_lines_works_by_name(tiny, monkeypatch):
    monkeypatch.setattr(collapse.COLLAPSES, "_members", dict(collapse.COLLAPSES._members))

    @collapse.register("second")
    def second(prediction, embedding):
        return torch.nn.functional.one_hot(
            prediction.probs.topk(2).indices[:, 1], len(embedding)
        ).float()

    model = tiny()
    trajectory = generate(model, "ab", 8, collapse="second")
    assert torch.equal(trajectory.token_ids, trajectory.top_ids[:, 1])
    assert trajectory.settings["collapse"] == "second"
    assert "second" in collapse.names()


def test_a_collapse_may_read_the_soft_token(tiny):
    seen = []

    @collapse.with_context
    def curious(prediction, embedding, context):
        seen.append(
            (context.step.tolist(), context.seeds, context.token_ids, len(context.run.tokens))
        )
        assert torch.equal(model.predict(context.state).log_probs, prediction.log_probs)
        return prediction.probs

    model = tiny()
    for when in ("always", "every(2)"):
        found = generate(model, ["abc", "a"], 2, collapse=curious, schedule=when, seed=[3, 4])
        plain = generate(model, ["abc", "a"], 2, schedule=when, seed=[3, 4])
        assert [one.text for one in found] == [one.text for one in plain]
        assert seen == [([t - 2, t], (3, 4), None, t + 1) for t in range(4)]
        seen.clear()


def goes(model, how, when, what, prompts=("ab", ""), steps=9):
    """One way to generate, or the refusal of a collapse that draws from what is no distribution."""
    if how == "vote" and not model.objective.noise_dim:
        with pytest.raises(ValueError, match="a distribution over vectors"):
            generate(model, "ab", 3, collapse=how)
        return
    for trajectory in generate(
        model, list(prompts), steps, collapse=how, schedule=when, feedback=what, seed=2
    ):
        assert len(trajectory.text) == steps, (how, when, what)
        assert all(torch.isfinite(getattr(trajectory, name)).all() for name in ARRAYS), (
            how,
            when,
            what,
        )


@pytest.mark.parametrize(
    ("objective", "table"),
    [*((o, "random") for o in EVERY_OBJECTIVE), ("mse", "joint"), ("ce", "orthonormal")],
)
def test_every_schedule_feedback_and_collapse_suits_every_objective(tiny, objective, table):
    model = tiny(objective=objective, table=table, context=6, mixing=3)
    for when, how, what in zip(
        schedule.names(), cycle(collapse.names()), cycle(ALONE), strict=False
    ):
        goes(model, how, when, what)
    goes(model, "vote", "never", "raw")


@pytest.mark.slow
def test_every_schedule_feedback_and_collapse_go_together(tiny):
    model = tiny(objective="energy(4)", context=6, mixing=3)
    for how, when, what in product(collapse.names(), schedule.names(), ALONE):
        goes(model, how, when, what, [""], 3)


# -- seeds and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["always", "never", "every(3)"])
def test_the_same_seed_gives_the_same_bits_another_seed_another_text(tiny, when):
    model = tiny(objective="mse")
    torch.manual_seed(1)
    one = generate(model, "ab", 30, schedule=when, seed=5)
    torch.manual_seed(2)
    same, other = (generate(model, "ab", 30, schedule=when, seed=seed) for seed in (5, 6))
    assert one.text == same.text != other.text
    assert all(torch.equal(getattr(one, name), getattr(same, name)) for name in ARRAYS)


CHOICES = [("always", "mixture"), ("never", "raw"), ("every(3)", "mixture")]


def batch_against_one_by_one(model, steps, tolerance=None, **how):
    """The tolerance, where none is given, is what rounding makes of these very paths."""

    def write(model):
        paths = generate(model, PROMPTS, steps, seed=[4, 5, 6, 7, 8], **how)
        return [getattr(path, name) for path in paths for name in ARRAYS]

    tolerance = tolerance or rounding(model, write)
    together = generate(model, PROMPTS, steps, seed=[4, 5, 6, 7, 8], **how)
    for prompt, seed, found in zip(PROMPTS, (4, 5, 6, 7, 8), together, strict=True):
        alone = generate(model, prompt, steps, seed=seed, **how)
        assert (found.prompt, found.text) == (prompt, alone.text)
        assert torch.equal(found.collapsed, alone.collapsed)
        for name in ARRAYS:
            torch.testing.assert_close(
                getattr(found, name), getattr(alone, name), atol=tolerance, rtol=0
            )


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize(("when", "what"), CHOICES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_of_unequal_prompts_is_its_prompts_one_by_one(
    tiny, objective, when, what, temperature
):
    model = tiny(objective=objective, context=24, scale=0.15)
    batch_against_one_by_one(model, 9, schedule=when, feedback=what, temperature=temperature)


@pytest.mark.slow
@pytest.mark.parametrize(("when", "what"), CHOICES)
@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_a_batch_is_its_prompts_one_by_one_far_beyond_the_context(
    tiny, monkeypatch, objective, when, what
):
    """In float64: fed back to itself 60 times this wild model enlarges rounding by 1e5 or more."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    model = tiny(objective=objective).double()
    batch_against_one_by_one(model, 60, 1e-7, schedule=when, feedback=what, temperature=0.8)


MEMBERS = [
    *(
        {"collapse": how}
        for how in [*collapse.names(), "nearest('cosine')", "nearest('dot')", "vote(50, least=2)"]
    ),
    *(
        {"schedule": when}
        for when in [
            *schedule.names(),
            "entropy(1.2, until=1.0)",
            "distance(1.6)",
            "off-hull(1.6)",
            "oracle(0.3, 0.1)",
        ]
    ),
    *({"schedule": "random(0.3)", "feedback": what} for what in ALONE),
]


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_a_batch_by_every_member_is_its_prompts_one_by_one(tiny, member):
    model = tiny(objective="energy(4)", context=24, scale=0.15, embedding_dim=8, mixing=3)
    batch_against_one_by_one(model, 9, **member)


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_the_same_seed_gives_the_same_text_by_every_member(tiny, member):
    model = tiny(objective="energy(4)", mixing=3)
    one, same = (generate(model, "ab", 15, seed=5, **member) for _ in range(2))
    assert one.text == same.text
    assert all(
        torch.equal(getattr(one, name), getattr(same, name)) for name in (*ARRAYS, "collapsed")
    )


def test_one_seed_for_all_prompts_is_that_seed_for_each(tiny):
    model = tiny()
    together = generate(model, ["ab", "ab"], 9, seed=3)
    assert together[0].text == together[1].text == generate(model, "ab", 9, seed=3).text


def test_first_characters_over_many_seeds_follow_the_model(tiny):
    """3,000 seeds in one batch, chi-square over 13 symbols: false alarm once in a million."""
    model = tiny()
    written = generate(model, [""] * 3000, 1, temperature=1.0, seed=range(3000))
    counts = np.bincount(
        [int(trajectory.token_ids[0]) for trajectory in written], minlength=len(LETTERS)
    )
    expected = model.probs(model.start())[0].double().numpy()
    assert chisquare(counts, expected / expected.sum() * 3000).pvalue > 1e-6


def test_an_empty_prompt_starts_from_nothing(tiny):
    model = tiny()
    trajectory = generate(model, "", 1, temperature=0)
    assert trajectory.token_ids[0] == model.predict(model.start()).log_probs.argmax()


def test_a_low_temperature_is_greedy(tiny):
    model = tiny()
    greedy = generate(model, "ab", 20, temperature=0)
    assert generate(model, "ab", 20, temperature=1e-6, seed=9).text == greedy.text


def test_generate_leaves_model_and_global_state_alone(tiny):
    model = tiny().train()
    before, threads, grad = (
        torch.random.get_rng_state(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generate(model, "ab", 5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert (torch.get_num_threads(), torch.is_grad_enabled(), model.training) == (
        threads,
        grad,
        True,
    )
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    model.log_probs(torch.zeros(1, 3).long()).sum().backward()  # training can go on


# -- schedules that look at more than the step ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "above", "until"),
    [
        ("entropy", 2.15, None),
        ("entropy", 2.3, 2.1),
        ("distance", 1.1, None),
        ("distance", 1.25, 1.0),
    ],
)
def test_hard_steps_are_those_of_the_measure_recorded(tiny, name, above, until):
    model, seen = tiny(objective="mse", scale=0.15, embedding_dim=8), set()
    for trajectory in generate(
        model, PROMPTS, 40, schedule=f"{name}({above}, {until})", seed=range(5)
    ):
        hard = False
        for measure, found in zip(
            getattr(trajectory, name).tolist(), trajectory.collapsed.tolist(), strict=True
        ):
            held = until is not None and hard and measure >= until
            seen.add((measure > above, held))
            hard = measure > above or held
            assert found == hard
    assert len(seen) == (2 if until is None else 4)


def test_random_draws_alike_whatever_is_written(tiny):
    hard = [
        generate(
            tiny(objective="mse"), "ab", 40, seed=3, schedule="random", **choice
        ).collapsed.tolist()
        for choice in ({}, {"temperature": 0}, {"feedback": "gumbel"}, {"collapse": "nearest"})
    ]
    assert all(one == hard[0] for one in hard)
    assert 5 < sum(hard[0]) < 35


RARE = torch.rand(11, 11, generator=torch.Generator().manual_seed(0)).double() ** 4


def truth_of_letters():
    """A chain over the letters alone (the model's blank and line break it does not know); k after k
    is impossible.
    """
    table = RARE.clone()
    table[10, 10] = 0
    return Markov((table / table.sum(1, keepdim=True)).numpy(), "abcdefghijk")


@pytest.mark.parametrize(("above", "until"), [(1.0, None), (1.0, 0.7)])
def test_oracle_is_hard_where_a_loop_by_hand_says(tiny, above, until):
    """Unequal prompts in one batch; kkkkkkkk and one with a blank lose the truth before the first
    step.
    """
    model, truth, seen = tiny(objective="mse", context=60, scale=0.1), truth_of_letters(), set()
    schedules = schedule.Oracle(above, until, truth)
    for trajectory in generate(model, [*PROMPTS, "cd"], 40, schedule=schedules, seed=range(6)):
        prompt = model.tokenizer.encode(trajectory.prompt)
        inputs = torch.cat([model.embedding[prompt], trajectory.inputs[:-1]])
        said = (
            predicted_without_cache(model, inputs)
            .log_probs[len(prompt) :]
            .detach()
            .double()
            .exp()
            .numpy()
        )
        text, state, hard, lost = trajectory.prompt + trajectory.text, truth.start(), False, False
        for t, symbol in enumerate(text):
            if not lost:
                p = truth.probs(state)[0].numpy()  # of a … k, which the model counts from 2
            if t >= len(prompt):
                q = said[t - len(prompt), 2:]
                kl = (
                    math.inf
                    if lost
                    else sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
                )
                held = until is not None and hard and kl >= until
                seen.add((lost, kl > above, held))
                hard = kl > above or held
                assert trajectory.collapsed[t - len(prompt)] == hard, (trajectory.prompt, t)
            i = "abcdefghijk".find(symbol)
            lost = lost or i < 0 or p[i] == 0
            if not lost:
                state = truth.advance(state, token_ids=torch.tensor([i]))
    assert seen >= {(True, True, False), (False, True, False), (False, False, False)} or until
    assert until is None or {(False, False, True), (False, False, False)} <= seen


def test_oracle_without_a_truth_compares_the_model_with_itself_on_hard_tokens(tiny):
    model = tiny(objective="mse", scale=0.15)
    own, given = (
        generate(model, PROMPTS, 20, schedule=schedule.Oracle(0.2, truth=t), seed=1)
        for t in (None, model)
    )
    for one, other in zip(own, given, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert not one.collapsed[0]  # nothing soft was read yet
    assert 0 < torch.cat([one.collapsed for one in own]).float().mean() < 1
    assert own[0].settings["schedule"] == "oracle(above=0.2, until=None, truth=None)"
    recorded = given[0].settings["schedule"]
    assert recorded == "oracle(above=0.2, until=None, truth=<SoftAR>)"
    with pytest.raises(ValueError, match="<SoftAR> stands for an object that no string can say"):
        generate(model, "a", 1, schedule=recorded)


# -- what a soft token shows ------------------------------------------------------------------------------------------


def shown_row(context):
    """The hard control of every schedule: where it leaves a token soft, the row of the symbol shown
    goes back in.
    """
    return context.embedding[context.token_ids]


@pytest.mark.parametrize("when", ["never", "every(3)", "random", "entropy(1.5)", "retro(2)"])
def test_feeding_back_the_emitted_symbol_is_always(tiny, when):
    model = tiny(objective="mse")
    for found, expected in zip(
        generate(model, PROMPTS, 30, schedule=when, feedback=shown_row, seed=range(5)),
        generate(model, PROMPTS, 30, seed=range(5)),
        strict=True,
    ):
        assert found.text == expected.text
        torch.testing.assert_close(found.inputs, expected.inputs)
        torch.testing.assert_close(found.log_probs, expected.log_probs, **exact(model))


@pytest.mark.parametrize("what", ["mixture", "gumbel", shown_row])
def test_soft_temperature_reads_the_symbols_of_soft_tokens_alone(tiny, what):
    """Both temperatures by hand from the distributions recorded; the same uniform number
    decides.
    """
    model, seen = tiny(objective="mse", context=60), set()
    for soft in (0, 0.3, 2):
        options = {"schedule": "every(3)", "feedback": what, "temperature": 0.9, "seed": 5}
        found = generate(model, "abc", 30, soft_temperature=soft, **options)
        prompt = model.embedding[model.tokenizer.encode("abc")]
        probs = (
            predicted_without_cache(model, torch.cat([prompt, found.inputs[:-1]]))
            .probs[3:]
            .detach()
        )
        uniform = torch.rand(30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        for t in range(30):
            temperature = 0.9 if (t + 1) % 3 == 0 else soft
            expected = collapse.pick(probs[t : t + 1], temperature, uniform[t : t + 1]).item()
            assert found.token_ids[t] == expected
        seen.add(found.text)
        assert found.settings["soft_temperature"] == soft
        assert soft or torch.equal(
            found.token_ids[~found.collapsed], found.top_ids[~found.collapsed, 0]
        )
    assert len(seen) > 1
    assert "soft_temperature" not in generate(model, "abc", 3).settings


def test_a_soft_temperature_like_the_other_changes_nothing(tiny):
    model = tiny(objective="mse")
    one, other = (
        generate(model, "ab", 30, schedule="every(3)", temperature=0.7, soft_temperature=s)
        for s in (None, 0.7)
    )
    assert one.text == other.text
    assert torch.equal(one.vectors, other.vectors)


# -- grounded late ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "context"), [(1, 60), (3, 60), (40, 60), (1, 6), (3, 12), (4, 6)])
@pytest.mark.parametrize("what", ["mixture", "raw"])
def test_retro_is_the_loop_by_hand(tiny, what, k, context):
    """Every prediction from nothing: of the slots the window holds, the latest k are soft, the
    older ones hard.
    """
    model = tiny(objective="mse", context=context, scale=0.15)
    found = generate(model, "abc", 30, schedule=f"retro({k})", feedback=what, seed=1)
    token_ids, soft = model.tokenizer.encode("abc").tolist(), [None] * 3
    begin, grounded = 0, set()
    for t in range(30):
        now = 3 + t
        slots = [
            model.embedding[token_ids[j]] if j in grounded or j < 3 else soft[j]
            for j in range(begin, now)
        ]
        said = model.objective.predict(
            model.hidden_states(vectors=torch.stack(slots)[None])[:, -1], model.embedding
        )
        torch.testing.assert_close(found.vectors[t], said.vector[0].detach(), **exact(model))
        token_ids.append(found.token_ids[t].item())
        soft.append(found.vectors[t] if what == "raw" else said.probs[0].detach() @ model.embedding)
        grounded |= {now - k} & set(range(max(3, begin), now))
        begin = now + 1 - max(1, context // 2) if now + 1 - begin > context else begin
    assert found.collapsed.nonzero().flatten().tolist() == sorted(j - 3 for j in grounded)
    assert (len(grounded) == max(0, 30 - k)) is (context > 6 or k == 1)
    expected = [model.embedding[token_ids[j]] if j in grounded else soft[j] for j in range(3, 33)]
    torch.testing.assert_close(found.inputs, torch.stack(expected), **exact(model))


def test_a_schedule_may_ground_all_that_is_soft(tiny):
    """Soft for four tokens, then all five are said at once: each mask tells of one row."""

    def together(context):
        return ((context.step + 1) % 5 == 0)[:, None].expand(-1, 5)

    model = tiny(objective="mse", context=40, scale=0.15)
    batch_against_one_by_one(model, 23, 1e-4, schedule=together)
    found = generate(model, "ab", 23, schedule=together)
    assert found.collapsed.tolist() == [True] * 20 + [False] * 3
    assert torch.equal(found.inputs[:20], model.embedding[found.token_ids[:20]])


def test_grounding_needs_a_model_that_can(tiny, monkeypatch):
    model = tiny(objective="mse")
    monkeypatch.setattr(VectorPredictor, "can_replace", False)
    with pytest.raises(
        ValueError, match="grounds slots that were read: it needs a model that reads vectors"
    ):
        generate(model, "ab", 9, schedule="retro(2)")


# -- long texts -------------------------------------------------------------------------------------------------------


def live():
    """How many tensors there are, and the bytes behind them."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [
            one
            for one in gc.get_objects()
            if type(one) is torch.Tensor and one.layout == torch.strided
        ]
    return len(tensors), sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "steps"),
    [
        ({"schedule": "never"}, 1024),
        ({"schedule": "oracle"}, 384),
        ({"schedule": "retro(3)"}, 384),
        ({"schedule": "every(5)", "collapse": "deferred(4)"}, 384),
        ({"schedule": "liquid(3)"}, 384),
    ],
    ids=str,
)
def test_what_is_held_grows_by_the_trajectory_alone(tiny, choice, steps):
    """Counted at two steps at which equally many distributions wait to be reduced: all else is a
    window's worth.
    """
    model, asked, found = tiny(objective="mse", scale=0.15), [], []

    def count():
        asked.append(1)
        if len(asked) in (129, steps + 1):
            found.append(live())
        return False

    written = generate(model, "ab", steps + 1, stop=count, **choice)
    arrays = [getattr(written, name) for name in (*ARRAYS, "token_ids", "collapsed", "top_ids")]
    own = (
        sum(tensor.nbytes for tensor in arrays) / len(written) + 8
    )  # the symbols shown are kept once more
    (few, small), (many, large) = found
    assert many - few < 1.1 * (
        steps - 128
    )  # one a step, the symbol shown, and some for every block reduced
    assert (
        large - small < own * (steps - 128) + 20_000
    )  # half a window's worth of cache, more or less


# -- candidates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["always", "never", "every(3)", "retro(2)", "liquid(2)"])
@pytest.mark.parametrize("how", ["softmax", "nearest", "deferred"])
def test_what_is_emitted_is_among_its_candidates(tiny, when, how):
    path = generate(tiny(objective="mse"), "ab", 80, collapse=how, schedule=when, temperature=4)
    among = path.top_ids == path.token_ids[:, None]
    assert (among.sum(1) == 1).all()
    torch.testing.assert_close(path.top_probs[among], path.log_probs.exp())
    assert (path.top_probs.diff(dim=1) <= 0).all()
    if how == "softmax":
        assert among[:, -1].any()  # some are not among the best eight of thirteen


def test_among_equals_the_smaller_id_comes_first():
    """A model that was not trained holds everything equally probable."""
    tokenizer = CharTokenizer.fit("abcdefghijklmnopqrstuvwxyz")
    model = SoftAR(ModelConfig(vocab_size=26, n_layers=1, d_model=16, n_heads=2), tokenizer)
    path = generate(model, "z", 5, temperature=0)
    assert path.text == "aaaaa"
    assert path.top_ids.tolist() == [list(range(8))] * 5


# -- predictors without vectors ---------------------------------------------------------------------------------------


def test_a_predictor_without_vectors_generates(rng):
    trajectory = generate(Chain(), "b", 50, seed=1)
    assert set(trajectory.text) == {"b"}  # the only symbol after b
    written = generate(Chain(), "a", 50, seed=1)
    assert written.vectors.shape == written.inputs.shape == (50, 0)
    assert torch.isnan(written.distance).all()
    assert written.log_probs.exp().min() >= 0.1 - 1e-6


@pytest.mark.parametrize(
    "choice",
    [
        *({"collapse": how} for how in ("nearest", "barycentric", "vote", "mixing")),
        *({"schedule": when} for when in schedule.names() if when != "always"),
    ],
)
def test_a_predictor_without_vectors_refuses_soft_tokens(choice):
    with pytest.raises(ValueError, match="vectors"):
        generate(Chain(), "a", 5, **choice)


# -- stopping ---------------------------------------------------------------------------------------------------------


def test_stop_returns_the_steps_done_so_far(tiny):
    model, asked = tiny(), []

    def stop():
        asked.append(1)
        return len(asked) > 70

    trajectory = generate(model, "ab", 200, seed=3, stop=stop)
    assert len(trajectory) == len(trajectory.text) == len(trajectory.vectors) == 70
    assert generate(model, "ab", 200, seed=3).text.startswith(trajectory.text)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be .* at least 1, not 0"),
        ({"steps": -5}, "steps must be .* not -5"),
        ({"temperature": -0.1}, r"temperature must be .* not -0\.1"),
        ({"temperature": math.nan}, "temperature must be .* not nan"),
        ({"temperature": math.inf}, "temperature must be .* not inf"),
        ({"soft_temperature": -0.1}, r"soft_temperature must be .* not -0\.1"),
        ({"soft_temperature": math.inf}, "soft_temperature must be .* not inf"),
        ({"collapse": "fold"}, "unknown collapse 'fold'; known: softmax, nearest"),
        ({"schedule": "later"}, "unknown schedule 'later'; known: always, never, every"),
        ({"schedule": "every(0)"}, "every.* not 0"),
        ({"schedule": "every("}, "every"),
        ({"feedback": "echo"}, "unknown feedback 'echo'; known: mixture, raw"),
        ({"window": "round"}, "unknown window 'round'; known: plain, sum"),
        ({"prompt": "abX"}, "'X'"),
        ({"prompt": "abcdefghijk a"}, "13 tokens, the model's context holds 12: shorten"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": ["ab", "abé"]}, "'é'"),
        ({"prompt": ["ab", "c"], "seed": [1, 2, 3]}, "3 seeds for 2 prompts"),
    ],
)
def test_generate_says_what_is_wrong(tiny, wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        generate(tiny(), **{"prompt": "ab", "steps": 5, **wrong})
    assert not isinstance(caught.value, StoreError)


def test_generate_without_a_tokenizer_says_so(tiny):
    model = tiny()
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        generate(model, "ab")


def test_a_prompt_as_long_as_the_context_is_read_whole(tiny):
    model = tiny()
    trajectory = generate(model, "abcdefghijk ", 3, temperature=0)
    expected = model.predict(
        model.read(model.start(), model.tokenizer.encode("abcdefghijk ")[None])
    )
    assert trajectory.token_ids[0] == expected.log_probs.argmax()


def test_unknown_characters_are_read_as_unk_where_the_tokenizer_lets_them_in(tiny):
    from softar_lab.models.config import ModelConfig
    from softar_lab.models.soft_ar import SoftAR

    tokenizer = CharTokenizer.fit("abc", unk=True)
    model = SoftAR(ModelConfig(vocab_size=4, context=8, n_layers=1, d_model=8), tokenizer)
    assert len(generate(model, "abX", 5).text) == 5


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_fast_path_generates_what_the_loop_generates(tiny, objective, temperature):
    """One row of a plain model goes through NumPy; `every(1)` is `always` by the general loop."""
    model = tiny(objective=objective, table="orthonormal", embedding_dim=16, context=60)
    for seed in range(5):
        settings = {"steps": 50, "seed": seed, "temperature": temperature}
        short, general = (
            generate(model, "abc", schedule=when, **settings) for when in ("always", "every(1)")
        )
        assert short.text == general.text
        for name in ARRAYS:
            torch.testing.assert_close(getattr(short, name), getattr(general, name), **exact(model))
        assert torch.equal(short.collapsed, general.collapsed)


def test_a_prompt_of_token_ids_is_that_of_its_text_or_refused(tiny):
    model = tiny(objective="mse")
    ids = model.tokenizer.encode("abc")
    found, expected = generate(model, ids, 5, seed=3), generate(model, "abc", 5, seed=3)
    assert torch.equal(found.token_ids, expected.token_ids)
    for wrong in (torch.tensor(1.0), torch.tensor(1), ids.float(), ids[None], ids > 0):
        with pytest.raises(ValueError, match=r"whole numbers of shape \(T,\), not torch"):
            generate(model, wrong, 5)
    for wrong in (ids - 100, ids + 100):
        with pytest.raises(ValueError, match="token ids of a prompt lie from 0 to"):
            generate(model, wrong, 5)
