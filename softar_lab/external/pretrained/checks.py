"""The check at loading: a network is read exactly, or refused for the reason that is true.

Its own forward pass on random ids is the reference. Two results may differ by what rounding makes
of them, which is measured: the same vectors are read again, each number moved in its last place,
so that every later operation rounds another way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .kv_cache import Memory
from .precision import in_float32
from .reading import HALF, Plan, Reader
from .weights import precision

DRAWS = 3  # texts: where rounding alone sends a token to another expert, the next may be spared it
TIMES = 8  # the measured effect of rounding, which is one draw, and other kernels' order of sums
_EPS = torch.finfo(torch.float32).eps
_FLOOR = 64 * _EPS

LogProbs = Callable[[bool, Tensor], Tensor]


class Unreadable(ValueError):
    """Why a network cannot be read by vectors."""


@dataclass(frozen=True)
class Case:
    """A random text, and what the network itself makes of it.

    Args:
        network: the network.
        ids: tokens (2, T); the second text is the first with another ending.
        vectors: (2, T, m): the rows of the first text; mixtures of rows.
        truth: the network's own log-probabilities of both texts.
        log_probs: from hidden states (True) or logits (False) to log-probabilities.
    """

    network: nn.Module
    ids: Int[Tensor, "2 T"]
    vectors: Float[Tensor, "2 T m"]
    truth: Float[Tensor, "2 T V"]
    log_probs: LogProbs

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest type that the network rounds to."""
        return precision(self.network)

    def read(self, plan: Plan, vectors: Tensor) -> Tensor:
        """The log-probabilities after each vector of whole texts."""
        return self.log_probs(plan.head, Reader(self.network, plan).whole(vectors))


def plan_of(network: nn.Module, avoid: set[int], length: int, log_probs: LogProbs) -> Plan:
    """The first plan by which a network reads vectors exactly.

    It is found in float32, where a wrong plan cannot be taken for rounding; in half precision the
    network must then confirm it.

    Args:
        network: the network.
        avoid: ids with a meaning of their own, such as that of padding.
        length: how many tokens a text may have.
        log_probs: from hidden states (True) or logits (False) to log-probabilities.

    Raises:
        Unreadable: where there is none; the message names the reason.
    """
    table = network.get_input_embeddings().weight
    allowed = torch.tensor([i for i in range(len(table)) if i not in avoid], device=table.device)
    if len(allowed) < 2:
        raise Unreadable(f"a vocabulary of {len(table)} tokens, {len(allowed)} of them usable")
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(allowed), (DRAWS, 3, length), generator=generator)
    texts = allowed[draws.to(table.device)]
    try:
        with in_float32(network):
            plan = _first_plan(network, texts, log_probs)
        if table.dtype in HALF:
            _confirm(network, plan, texts, log_probs)
    except Unreadable as error:
        raise Unreadable(f"{network.config.model_type} cannot be read here: {error}") from error
    return plan


def _first_plan(network: nn.Module, texts: Tensor, log_probs: LogProbs) -> Plan:
    """The plan that one of the texts finds, rather one with a cache."""
    reason, slow = None, None
    for text in texts:
        try:
            plan = _plan(_case(network, text, log_probs))
        except Unreadable as error:
            reason = error
            continue
        if plan.cache or not Reader(network, plan).has_cache:
            return plan
        slow = plan
    if slow is None:
        raise reason
    return slow


def _confirm(network: nn.Module, plan: Plan, texts: Tensor, log_probs: LogProbs) -> None:
    """Raise Unreadable where a plan is not exact in the type that the network computes in."""
    for text in texts:
        case = _case(network, text, log_probs)
        far, rounding = _tried(f"in {case.dtype} it", partial(_two_ways, case, plan))
        if rounding.explains(far):
            return
    raise Unreadable(
        f"in {case.dtype} two ways to read a text differ by {far:.2g} nats where rounding explains "
        f"{rounding.bound:.2g}"
    )


def _two_ways(case: Case, plan: Plan) -> tuple[float, "Rounding"]:
    """How far a plan is from the network's own result, and what rounding explains."""
    both = case.read(plan, case.vectors)
    far = apart(both[0], case.truth[0])
    if plan.cache:
        far = max(far, _on(case, plan, both[1]))
    return far, Rounding(case, plan, both[0])


def _case(network: nn.Module, text: Int[Tensor, "3 T"], log_probs: LogProbs) -> Case:
    """Ask the network itself about a text; the others give another ending, and mixtures."""
    table, cut = network.get_input_embeddings(), 2 * text.shape[1] // 3
    ids = text[:2].clone()
    ids[1, :cut] = ids[0, :cut]
    truth = _tried("reading ids alone", lambda: network(input_ids=ids).logits)
    if truth.shape != (*ids.shape, len(table.weight)):
        raise Unreadable(
            f"for ids {tuple(ids.shape)} and a table of {len(table.weight)} rows its logits have "
            f"the shape {tuple(truth.shape)}"
        )
    rows = table(text).float()  # a table may scale its rows
    vectors = torch.stack([rows[0], (rows[0] + rows[2]) / 2])
    return Case(network, ids, vectors, truth.float().log_softmax(-1), log_probs)


class Rounding:
    """How far rounding may carry what is read from a row of vectors; measured where it matters."""

    def __init__(self, case: Case, plan: Plan, found: Tensor):
        self._case, self._plan, self._found = case, plan, found
        self._floor = _FLOOR * max(1.0, size_of(found))

    def explains(self, far: float) -> bool:
        """Whether two results may be so far apart."""
        return far <= self._floor or far <= self.bound

    @cached_property
    def bound(self) -> float:
        """The same row again, each number moved in its last place, and a factor."""
        x, eps = self._case.vectors[:1], torch.finfo(self._case.dtype).eps
        generator = torch.Generator().manual_seed(1)
        signs = torch.randint(2, x.shape, generator=generator).to(x) * 2 - 1
        moved = self._case.read(self._plan, x * (1 + eps * signs))[0]
        bound = TIMES * apart(moved, self._found) + self._floor
        if eps == _EPS and bound > (limit := 32 * eps**0.5):
            raise Unreadable(
                f"rounding alone moves its predictions by {bound:.2g} nats, more than {limit:.2g}"
            )
        return bound


def _plan(case: Case) -> Plan:
    """Find the plan: first how whole texts are read, then how they are read on."""
    given, cut = case.vectors.clone(), 2 * case.ids.shape[1] // 3
    # 1) ids = vectors
    try:
        plan, expected, rounding = _whole(case)
    except Unreadable:  # these may be the reason
        _check_steady(case)
        _check_steady(case, 1, "alone than in a batch")
        raise
    # 2) the future changes nothing
    if not rounding.explains(far := apart(case.truth[0, :cut], case.truth[1, :cut])):
        raise Unreadable(
            f"a later token changes what it has predicted before, by {far:.2g} nats: no causal "
            "language model (of an encoder, its config must say is_decoder=True)"
        )
    # 3) reading on = the whole text, forks undisturbed, rows by themselves
    plan = _reading_on(case, plan, expected[1], rounding)
    # 4) nothing has been changed by all this
    _check_steady(case)
    if not torch.equal(given, case.vectors):
        raise Unreadable("it writes into the vectors that it is given")
    return plan


def _check_steady(case: Case, rows: int = 2, when: str = "the second time") -> None:
    """Raise Unreadable where the same text gives something else when it is read again."""
    again = case.network(input_ids=case.ids[:rows]).logits.float().log_softmax(-1)[0]
    exactly = (4 * torch.finfo(case.dtype).eps + _FLOOR) * max(1.0, size_of(again))
    if (far := apart(again, case.truth[0])) > exactly:
        raise Unreadable(f"the same ids give something else {when}, by {far:.2g} nats")


def _whole(case: Case) -> tuple[Plan, Tensor, Rounding]:
    """How the network reads whole texts of vectors exactly.

    Returns:
        The plan, log-probabilities of both rows of `case.vectors`, and what may be rounding.
    """
    plans = [Plan(head=False)]
    if (
        case.network.base_model is not case.network
        and case.network.get_output_embeddings() is not None
    ):
        plans.insert(0, Plan())
    for plan in plans:
        try:
            return plan, *_whole_by(case, plan)
        except Unreadable as error:
            reason = error
    raise reason


def _whole_by(case: Case, plan: Plan) -> tuple[Tensor, Rounding]:
    """Log-probabilities of both rows of `case.vectors` by a plan, and what may be rounding."""
    try:
        both = case.read(plan, case.vectors)
    except Exception as error:
        _tried("reading the rows of its table", lambda: case.read(plan, case.vectors[:1]))
        reason = f"it reads the rows of its table, but no mixtures of them ({_line(error)})"
        raise Unreadable(reason) from error
    if both.isnan().any():
        raise Unreadable("mixtures of its table's rows give NaN")
    rounding = Rounding(case, plan, both[0])
    if not rounding.explains(far := apart(both[0], case.truth[0])):
        raise Unreadable(
            f"reading vectors does not give what reading ids gives, by {far:.2g} nats where "
            f"rounding explains {rounding.bound:.2g}: it uses more of a token than its vector"
        )
    return both, rounding


def _reading_on(case: Case, plan: Plan, expected: Tensor, rounding: Rounding) -> Plan:
    """The plan by which reading on gives what reading the whole text gives (T, V)."""
    # 1) with a cache
    for other in _plans_on(case.network, plan):
        try:
            if rounding.explains(_on(case, other, expected)):
                return other
        except Unreadable:
            raise
        except Exception:  # the next plan may suit this foreign network
            continue
    # 2) without a cache: every beginning of the text by itself
    for length in range(1, len(expected) + 1):
        found = _tried(
            f"a text of {length} tokens",
            partial(case.read, plan, case.vectors[1:, :length]),
        )[0]
        if not rounding.explains(far := apart(found, expected[:length])):
            raise Unreadable(
                f"a beginning of {length} tokens, read alone, gives something else than in the whole "
                f"text, by {far:.2g} nats"
            )
    return replace(plan, cache=False)


def _plans_on(network: nn.Module, plan: Plan) -> Iterator[Plan]:
    reader = Reader(network, plan)
    if not reader.has_cache:
        return
    starts = [None]
    if reader.takes_positions:
        starts += [0, *sorted({i + 1 for i in padded_positions(network)})]
    for several in (True, False):
        yield from (replace(plan, first=first, several=several) for first in starts)


def padded_positions(network: nn.Module) -> list[int]:
    """The padding index of each table of positions that has one: the first position follows it."""
    table = network.get_input_embeddings()
    found = [one for one in network.modules() if isinstance(one, nn.Embedding) and one is not table]
    return [one.padding_idx for one in found if one.padding_idx is not None]


def _on(case: Case, plan: Plan, expected: Tensor) -> float:
    """How far reading on is from reading the whole text, at the worst position.

    A row of mixtures is read in parts of several tokens and of one, while a branch reads something
    else; then it is forked into two rows.
    """
    reader, x = Reader(case.network, plan), case.vectors[1:]
    memory, at = Memory(), x.shape[1] // 2
    # 1) the first half at once, then one token, in a branch beside another
    first = reader.on(x[:, :at], memory, 0)
    branch, twin = memory.branch(), memory.branch()
    second = reader.on(x[:, at : at + 1], branch, at)
    reader.on(case.vectors[:1, :1], twin, at)
    # 2) two rows of it, which go on differently
    rows = branch.select(torch.zeros(2, dtype=torch.long, device=x.device))
    forked = reader.on(case.vectors.flip(0)[:, at + 1 : at + 2], rows, at + 1)
    # 3) the rest, several tokens
    rest = reader.on(x[:, at + 1 :], branch.branch(), at + 1)
    found = case.log_probs(plan.head, torch.cat([first, second, rest, forked[:1]], 1))[0]
    return apart(found, torch.cat([expected, expected[at + 1 : at + 2]]))


def apart(one: Float[Tensor, "*n V"], other: Float[Tensor, "*n V"]) -> float:
    """How far two results are apart: root mean square over the symbols, at the worst position."""
    far = torch.where(one == other, 0, one - other)  # two infinities may be equal
    found = far.float().square().mean(-1).sqrt().max()
    return float("inf") if found.isnan() else float(found)


def size_of(found: Tensor) -> float:
    """The largest finite number."""
    return float(found[found.isfinite()].abs().max())


def _tried(what: str, compute: Callable[[], Any]) -> Any:
    """The result of a computation; what it stumbles over becomes the reason."""
    try:
        return compute()
    except Unreadable:
        raise
    except Exception as error:  # whatever a foreign network stumbles over
        raise Unreadable(f"{what} ends in {_line(error)}") from error


def _line(error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text:.200}"
