"""The exact gradient of the expected reward, by enumerating every thought that could be drawn (K10).

And beside it the surrogates, whose gradients are what the estimators estimate.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..data.tasks import Task
from ..models.soft_ar import SoftAR
from .estimators import Draw, Estimator
from .roll_outs import RollOuts, expected_reward, step_log_probs

MOST_ROWS = 200_000  # rows of one pass; about 1 GB for the smallest models


def count_rows(model: SoftAR, problems: Int64[Tensor, "N P"], steps: int, of: Estimator) -> int:
    """How many rows `exact_reward` reads in its last pass: one for each way to think."""
    count = of.width(model.vocab_size, model.config.embedding_dim)
    return len(problems) * model.vocab_size ** (count * steps)


def exact_reward(
    model: SoftAR, task: Task, problems: Int64[Tensor, "N P"], steps: int, of: Estimator
) -> Float[Tensor, ""]:
    """The expected reward over all thoughts and answers, differentiable, in float64.

    Args:
        model: the policy.
        task: gives the rewards.
        problems: (N, P); the reward is the mean over them.
        steps: how many thoughts come before the answer.
        of: what draws the thoughts; its draws are symbols.

    Raises:
        ValueError: where there are too many; the message says how many.
    """
    # 1) every draw of one step, (A, k)
    total = count_rows(model, problems, steps, of)
    if total > MOST_ROWS:
        raise ValueError(
            f"{len(problems)} problems of {model.vocab_size} symbols have {total:.3g} rows of "
            f"{steps} thoughts, more than {MOST_ROWS:,}: the exact gradient is for smaller tasks"
        )
    count = of.width(model.vocab_size, model.config.embedding_dim)
    symbols = torch.arange(model.vocab_size, device=model.device)
    draws = torch.cartesian_prod(*[symbols] * count).view(-1, count)
    # 2) every row so far: its problem, its thoughts (n, t, m) and its log-probability (n,)
    table, rows = model.table.weight, torch.arange(len(problems), device=model.device)
    vectors = table.new_zeros(len(rows), 0, table.shape[1])
    weights = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
    for _ in range(steps):
        log_probs = step_log_probs(model, problems[rows], vectors)[:, -1]
        chosen = Draw(ids=draws.repeat(len(rows), 1))
        each = torch.arange(len(rows), device=model.device).repeat_interleave(len(draws))
        weights = weights[each] + of.log_density(chosen, log_probs[each], table).double()
        thought = of.vectors(chosen, table)
        vectors, rows = torch.cat([vectors[each], thought[:, None]], 1), rows[each]
    # 3) the answers
    log_probs = step_log_probs(model, problems[rows], vectors)[:, -1]
    right = expected_reward(log_probs, task.answers(problems)[rows])
    return (weights.exp() * right).sum() / len(problems)


def surrogate(
    model: SoftAR,
    task: Task,
    estimator: Estimator,
    made: RollOuts,
    group: int,
    expected: bool = False,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """What has the estimate as its gradient: the mean of advantage times log-probability.

    Args:
        model: the policy.
        task: gives the rewards.
        estimator: what drew the thoughts.
        made: the roll-outs; their draws count, so the noise is not drawn anew.
        group: how many adjacent rows are of one problem; see `leave_one_out`.
        expected: whether a row's reward is the probability of the right answer, whose gradient is
            known, in place of that of the answer drawn. The mean of the estimates is the same.

    Returns:
        The mean, and each row's reward.
    """
    table, steps = model.table.weight, len(made.draws)
    # 1) the thoughts as they were read; a trained table takes part in them
    thoughts = [estimator.vectors(draw, table) for draw in made.draws]
    empty = table.new_zeros(len(made.problems), 0, table.shape[1])
    vectors = torch.cat([empty, *(one[:, None] for one in thoughts)], 1)
    # 2) how likely the draws are
    log_probs = step_log_probs(model, made.problems, vectors)  # (N, T+1, V)
    total = log_probs.new_zeros(len(made.problems))
    for t in range(steps):
        total = total + estimator.log_density(made.draws[t], log_probs[:, t], table)
    # 3) the answers: all of them by their probability, or the one that was drawn
    if expected:
        rewards = expected_reward(log_probs[:, -1], task.answers(made.problems))
        advantages = leave_one_out(rewards.detach(), group)
        return (advantages * total + rewards).mean(), rewards.detach()
    total = total + log_probs[:, -1].gather(1, made.answers[:, None]).squeeze(1)
    rewards = task.rewards(made.problems, made.answers)
    return (leave_one_out(rewards, group) * total).mean(), rewards


def reward_through(
    model: SoftAR,
    task: Task,
    estimator: Estimator,
    problems: Int64[Tensor, "N P"],
    draws: Sequence[Draw],
) -> Float[Tensor, ""]:
    """The expected reward whose gradient flows through the thoughts, step by step."""
    table = model.table.weight
    vectors = table.new_zeros(len(problems), 0, table.shape[1])
    for draw in draws:
        log_probs = step_log_probs(model, problems, vectors)[:, -1]
        thought = estimator.vectors(draw, table, log_probs)
        vectors = torch.cat([vectors, thought[:, None]], 1)
    log_probs = step_log_probs(model, problems, vectors)[:, -1]
    return expected_reward(log_probs, task.answers(problems)).mean()


def leave_one_out(rewards: Float[Tensor, " N"], group: int) -> Float[Tensor, " N"]:
    """Each reward less the mean of the others in its group of adjacent rows.

    A group of one has no others; its rewards stay as they are. A group of equal rewards gives zeros.
    """
    if group == 1:
        return rewards
    grouped = rewards.view(-1, group)
    others = (grouped.sum(1, keepdim=True) - grouped) / (group - 1)
    return (grouped - others).flatten()
