"""Tasks know everything about themselves: states, answers, optimum and floors, against plain loops."""

from collections import Counter
from itertools import product

import pytest
import torch

from softar_lab.data.tasks import TASKS, load_task

SMALL = ("minimum-sum(3, 3)", "reachability((2, 4))", "counting(3, 3)")


def walk(name, problem):
    """The state after each step along every path, as names, by a plain loop over the choices."""
    task, words = load_task(name), [load_task(name).symbols[i] for i in problem]
    if name.startswith("reachability"):
        edges = {"root": words[:2]}
        rest, nodes = words[2:-2], [s for s in task.symbols if s[0] < task.symbols[-1][0]]
        edges |= {node: rest[2 * i : 2 * i + 2] for i, node in enumerate(nodes)}
        found = []
        for turns in product((0, 1), repeat=len(task.layers)):
            at, path = "root", []
            for turn in turns:
                at = edges[at][turn]
                path.append(at)
            found.append(path)
        return found
    if name.startswith("counting"):
        numbers = [int(word) for word in words]
        return [[f"={sum(numbers[: i + 1]) % task.modulus}" for i in range(len(numbers))]]
    found = []
    for signs in product((1, -1), repeat=len(words)):
        total, path = 0, []
        for sign, word in zip(signs, words, strict=True):
            total += sign * int(word)
            path.append(f"{total:+d}")
        found.append(path)
    return found


def right_answer(name, problem):
    finals, task = {path[-1] for path in walk(name, problem)}, load_task(name)
    if name.startswith("minimum-sum"):
        return f"{min(int(one) for one in finals if int(one) >= 0):+d}"
    if name.startswith("reachability"):
        (answer,) = finals & {task.symbols[i] for i in problem[-2:]}
        return answer
    return finals.pop()


@pytest.mark.parametrize("name", SMALL)
def test_states_and_answers_are_those_of_a_plain_loop(name):
    task = load_task(name)
    states, answers = task.states(task.problems), task.answers(task.problems)
    assert len(task.problems.unique(dim=0)) == len(task.problems)
    for row, problem in enumerate(task.problems.tolist()):
        paths = walk(name, problem)
        for step in range(task.steps):
            expected = Counter(path[step] for path in paths)
            found = {task.symbols[i]: p for i, p in enumerate(states[row, step].tolist()) if p}
            assert found == {state: n / len(paths) for state, n in expected.items()}
        assert task.symbols[answers[row]] == right_answer(name, problem)


def test_answer_shares_of_the_sums_are_the_published_ones():
    """Of the 6,561 problems of CoT2's task, in per cent."""
    task = load_task("minimum-sum")
    shares = task.answers(task.problems).bincount() / len(task.problems)
    names = {name: round(100 * p, 2) for name, p in zip(task.symbols, shares.tolist()) if p}
    assert len(task.problems) == 6561
    assert [names[one] for one in ("+1", "+0", "+2", "+3")] == [37.25, 23.91, 20.18, 10.12]
    assert task.floor(task.problems) == pytest.approx(0.3725, abs=5e-5)


def test_every_graph_asks_for_one_node_that_is_reached_and_one_that_is_not():
    task = load_task("reachability((2, 3, 4))")
    some = task.problems[torch.arange(0, len(task.problems), 97)]
    for problem in some.tolist():
        finals = {path[-1] for path in walk("reachability((2, 3, 4))", problem)}
        assert len(finals & {task.symbols[i] for i in problem[-2:]}) == 1
    assert task.floor(task.problems) == 0.5


def test_optimum_of_a_hard_chain_is_that_of_the_best_of_all_policies():
    """Of 2 x 2 digits there are 64 rules that choose a sign from the digits read so far."""
    task = load_task("minimum-sum(2, 3)")
    problems = (task.problems + 1).tolist()
    prefixes = [*product((1, 2), repeat=1), *product((1, 2), repeat=2)]
    best = 0
    for choice in product((1, -1), repeat=len(prefixes)):
        rule, right = dict(zip(prefixes, choice, strict=True)), 0
        for one, two, three in problems:
            held = rule[one,] * one + rule[one, two] * two
            sums = {a + b + c for a in (one, -one) for b in (two, -two) for c in (three, -three)}
            known = [s for s in (held + three, held - three) if s >= 0]
            right += bool(known) and min(known) == min(s for s in sums if s >= 0)
        best = max(best, right)
    assert task.optimum(1) == best / len(problems)


@pytest.mark.parametrize("name", SMALL)
def test_optimum_grows_with_the_width_and_ends_at_one(name):
    task = load_task(name)
    values = [task.optimum(width) for width in (1, 2, 3, 16)]
    assert values == sorted(values)
    assert values[-1] == 1
    assert name.startswith("counting") == (values[0] == 1)


@pytest.mark.parametrize("name", SMALL)
def test_fewer_steps_leave_the_first_states_out_and_more_hold_the_last_ones(name, rng):
    task = load_task(name)
    some = task.problems[:20]
    states = task.states(some)
    assert task.states(some, 1).equal(states[:, -1:])
    assert task.states(some, 0).shape == (20, 0, task.vocab_size)
    assert task.states(some, task.steps + 2)[:, -3:].equal(states[:, -1:].expand(-1, 3, -1))
    assert task.chains(some, rng(), task.steps + 1)[:, -1].equal(task.chains(some, rng())[:, -1])


@pytest.mark.parametrize("name", SMALL)
def test_a_chain_follows_a_path_to_the_right_answer(name, rng):
    task = load_task(name)
    for problem, chain in zip(task.problems, task.chains(task.problems, rng()), strict=True):
        names = [task.symbols[i] for i in chain]
        paths = walk(name, problem.tolist())
        answer = right_answer(name, problem.tolist())
        assert any(path[:-1] == names and path[-1] == answer for path in paths)


def rearrangements(name, problem):
    """The problem as what stays the same however it is arranged."""
    if name.startswith("reachability"):
        return (*problem[:-2], frozenset(problem[-2:]))
    return tuple(sorted(problem))


@pytest.mark.parametrize("name", ["minimum-sum", *SMALL])
def test_every_problem_is_in_one_part_with_its_rearrangements(name):
    """The shares are passed by less than one set of rearrangements: 4! problems of four digits."""
    task = load_task(name)
    parts = task.split()
    assert len(torch.cat(parts).unique(dim=0)) == len(torch.cat(parts)) == len(task.problems)
    kinds = [{rearrangements(name, one) for one in part.tolist()} for part in parts]
    assert sum(map(len, kinds)) == len(set.union(*kinds))
    most = Counter(rearrangements(name, one) for one in task.problems.tolist()).most_common(1)
    held_out, both = len(parts.held_out), len(parts.held_out) + len(parts.validation)
    assert 0 <= held_out - 0.2 * len(task.problems) < most[0][1]
    assert 0 <= both - 0.3 * len(task.problems) < 2 * most[0][1]
    assert not parts.train.equal(task.split(seed=1).train)
    assert parts.train.equal(task.split().train)


def test_rearranged_problems_have_one_answer():
    """Else they would not have to stay together."""
    for name in SMALL:
        task = load_task(name)
        answers, found = task.answers(task.problems).tolist(), {}
        for one, answer in zip(task.problems.tolist(), answers, strict=True):
            found.setdefault(rearrangements(name, one), set()).add(answer)
        assert max(map(len, found.values())) == 1


def test_parts_that_would_be_empty_are_refused():
    with pytest.raises(ValueError, match="has 1 sets of rearranged problems"):
        load_task("minimum-sum(1, 3)").split()
    task = load_task("minimum-sum(3, 3)")
    for shares in ((0.0, 0.1), (0.2, 0.0), (0.9, 0.2)):
        with pytest.raises(ValueError, match="give smaller shares, or take a larger task"):
            task.split(*shares)


def test_problems_are_written_in_their_symbols_and_encoded_by_the_tokenizer():
    task = load_task("minimum-sum(3, 3)")
    assert task.write(task.problems[5]) == "1 2 3"
    letters = task.tokenizer.decode(task.problems[5])
    assert task.tokenizer.encode(letters).equal(task.problems[5])
    assert load_task(task.name) == task


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sudoku", "unknown task 'sudoku'; known: .*minimum-sum"),
        ("minimum-sum(0)", r"minimum-sum\(largest\) must be a whole number of at least 1, not 0"),
        ("counting(7, 1)", r"counting\(length\) must be a whole number of at least 2, not 1"),
        ("reachability((3,))", "needs at least two layers"),
        ("reachability((3, 1))", "a layer of reachability must be .* at least 2, not 1"),
    ],
)
def test_bad_tasks_are_refused_by_what_is_wrong(name, message):
    assert TASKS.names() == ["counting", "reachability", "minimum-sum"]
    with pytest.raises(ValueError, match=message):
        load_task(name)
