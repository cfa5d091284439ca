"""ThoughtExplorer: watch a model think about a problem, and train it further on rewards (K10)."""

import threading
from copy import deepcopy
from typing import Any

import ipywidgets as w
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .. import plots
from ..data.tasks import Task
from ..evidence import masked
from ..metrics.beliefs import BeliefProbe, overlap, states_held
from ..models.soft_ar import SoftAR
from ..training.enumeration import MOST_ROWS, count_rows
from ..training.estimators import ESTIMATORS
from ..training.reinforcement import ReinforceConfig, ascend, gradient, reinforce
from ..training.roll_outs import pauses, roll_out, step_log_probs
from .panel import Panel
from .picture import Picture
from .setting import NARROW, menu

FITTED = 512  # problems whose thoughts the probe is fitted on
LEAST = 0.02  # a state below this probability, in every row, gets no column
THINKING = ("soft", "hard", "pause", "exact")
RECIPE = ReinforceConfig(steps=150, problems=8, group=8, eval_every=10, save_every=0)


class ThoughtExplorer(Panel):
    """Choose a problem and see, thought by thought, which states a soft token holds at once.

    A linear probe reads each thought; beside it stands the exact distribution. `explorer.question`,
    `.thoughts` (their number) and `.thinking` are the controls: "soft" thinks with mixtures, "hard"
    with symbols, "pause" with nothing, and "exact" reads the mixtures that would be right. `Train`
    goes on by rewards alone, on a copy of the model.

    Args:
        model: a model of the task, from `train_thoughts` or `reinforce`; it is not changed.
        task: the task.
        problem: the symbols of the first problem, such as "4 8 5 8"; None: a held-out one.
        estimator: what `Train` estimates the gradient with.
        config: the recipe of `Train`.
    """

    def __init__(
        self,
        model: SoftAR,
        task: Task,
        problem: str | None = None,
        estimator: str = "gaussian",
        config: ReinforceConfig = RECIPE,
    ):
        super().__init__()
        self.model, self.task, self.config = deepcopy(model), task, config
        parts = task.split()
        self._train, self._first = parts.train[:FITTED], parts.held_out[0]
        self.beliefs: dict[str, Float64[Tensor, " V"]] = {}
        self._curves: tuple[list, list] = ([], [])
        # 1) the controls
        text = task.write(self._first) if problem is None else problem
        most = min(task.steps + 2, model.context - task.length)
        self.question = w.Text(text, description="Problem", continuous_update=False, style=NARROW)
        self.thoughts = w.IntSlider(task.steps, min=0, max=most, description="Thoughts")
        self.thoughts.style = NARROW
        self.thinking = menu("Thinking", list(THINKING), "soft")
        names = [name for name in ESTIMATORS.names() if name != "exact"]
        self.estimator = menu("Estimator", names, estimator)
        self.train_button = w.Button(description="Train", button_style="primary", icon="play")
        self.stop_button = w.Button(description="Stop", icon="stop")
        self.train_button.on_click(lambda _: self._run_in_background(self._work))
        self.stop_button.on_click(self.stop)
        # 2) the pictures
        self.figure, self.curves = plots.beliefs_figure(), plots.rewards_figure()
        self._picture, self._progress = Picture(self.figure), Picture(self.curves)
        self.children = (
            w.HBox([self.question, self.thoughts, self.thinking]),
            w.HBox([self.estimator, self.train_button, self.stop_button]),
            self.status,
            self._picture,
            self._progress,
        )
        for control in (self.question, self.thoughts, self.thinking):
            control.observe(lambda _: self._attempt(self.show), "value")
        self._attempt(self._fit)

    def _fit(self) -> None:
        """Fit the probe to the model's own thoughts, and show the problem."""
        steps = self.task.steps
        own = roll_out(self.model, self._train, steps, "mixture", temperature=0).vectors
        states = self.task.states(self._train, steps)
        self.probe = BeliefProbe(own.flatten(0, 1), states.flatten(0, 1))
        self.show()

    def read_question(self) -> Int64[Tensor, "1 P"]:
        """The token ids of the typed problem (1, P).

        Raises:
            ValueError: where it is none of the task's problems; the message shows one that is.
        """
        names = self.question.value.split()
        known = {name: i for i, name in enumerate(self.task.symbols)}
        ids = torch.tensor([[known.get(name, -1) for name in names]])
        matches = ids.shape[1] == self.task.length and (self.task.problems == ids).all(1).any()
        if not matches:
            example = self.task.write(self._first)
            raise ValueError(
                f"{self.question.value!r} is no problem of {self.task.name}: {example}"
            )
        return ids

    def vectors(self, problem: Int64[Tensor, "1 P"]) -> Float[Tensor, "1 T m"]:
        """The thoughts about a problem, by the chosen way of thinking."""
        steps = self.thoughts.value
        if self.thinking.value == "exact":
            states = self.task.states(problem, steps).to(self.model.embedding)
            return states @ self.model.embedding
        if self.thinking.value == "pause":
            return pauses(self.model, problem, steps)
        feedback = "mixture" if self.thinking.value == "soft" else "shown"
        return roll_out(self.model, problem, steps, feedback, temperature=0).vectors

    def show(self) -> None:
        """Think about the problem, and display what each thought holds."""
        with self._drawing:
            problem = self.read_question()
            vectors, exact = self.vectors(problem), self.task.states(problem, self.thoughts.value)
            with torch.inference_mode():
                answer = step_log_probs(self.model, problem, vectors)[0, -1].exp()
            read = self.probe.read(vectors[0]) if vectors.shape[1] else exact[0]
            # 1) the rows of the map
            self.beliefs = {}
            for t in range(self.thoughts.value):
                self.beliefs[f"{t + 1}: exact"] = exact[0, t]
                self.beliefs[f"{t + 1}: thought"] = read[t]
            self.beliefs["answer"] = answer.double()
            # 2) in words
            right = self.task.symbols[int(self.task.answers(problem))]
            self.said, self.right = self.task.symbols[int(answer.argmax())], right
            self.overlap = overlap(read, exact[0]).mean().item() if len(read) else float("nan")
            self._draw()
            held = ", ".join(f"{n:.1f}" for n in states_held(read).tolist()) or "none"
            sure = f"{answer.max().item():.0%}"
            self.say(f"answers {self.said} ({sure}); right is {right}; states held: {held}")

    def _columns(self) -> tuple[list[str], dict[str, list[float]]]:
        """The names of the states that any row holds, and the rows of the map."""
        whole = torch.stack([*self.beliefs.values()])
        some = (whole.amax(0) >= LEAST).nonzero()[:, 0]
        names = [self.task.symbols[i] for i in some.tolist()]
        return names, {name: row[some].tolist() for name, row in self.beliefs.items()}

    def _draw(self) -> None:
        plots.update_beliefs(self.figure, *self._columns())
        self._picture.draw()

    def train(self) -> None:
        """Train with the panel's recipe and wait for the end."""
        self._run(self._work, self._begin())

    def _work(self, stop: threading.Event) -> None:
        self._curves = ([], [])
        name, begin = self.estimator.value, int(self.model.card.get("continued", 0))

        def on_step(event: dict[str, Any]) -> bool:
            if "accuracy" in event:
                self._curves[0].append((event["roll_outs"], event["accuracy"]))
                if (cosine := self.direction(event["step"])) is not None:
                    self._curves[1].append((event["roll_outs"], cosine))
                plots.update_rewards(self.curves, self._curves)
                self._progress.draw()
            self.say(f"step {event['step']} of {event['steps']}, {name}")
            return stop.is_set()

        run = reinforce(
            self.model, self.task, name, self.config, seed=begin, progress=False, on_step=on_step
        )
        self.model.card["continued"] = begin + 1  # the next training draws other problems
        with self._drawing:
            self._fit()
        ended = "stopped" if run.interrupted else "done"
        self.say(f"{ended}: {run.accuracy:.1%} of held-out problems right")

    def direction(self, seed: int = 0) -> float | None:
        """The cosine of one estimate with the exact gradient; None where it cannot be enumerated.

        Both are over some training problems, and the exact one is that of drawn symbols. Each
        `seed` has roll-outs of its own.
        """
        problems, steps = self._train[: self.config.problems], self.task.steps
        exact = ESTIMATORS.make("exact")
        if count_rows(self.model, problems, steps, exact.inner) > MOST_ROWS:
            return None
        found = []
        first, group = seed * len(problems) * self.config.group, self.config.group
        for estimator in (ESTIMATORS.make(self.estimator.value), exact):
            ascend(self.model, self.task, estimator, problems, steps, group, first)
            found.append(gradient(self.model))
        return cosine_similarity(*found, dim=0).item()

    def still(self):
        if not self.beliefs:
            return None
        return plots.draw_beliefs(*self._columns(), title=self.question.value)

    def __repr__(self) -> str:
        what = f"{self.question.value!r}, {self.thoughts.value} {self.thinking.value} thoughts"
        if self.problem or not self.beliefs:
            return f"ThoughtExplorer({what}: nothing, {self.problem or 'yet'})"
        answer = f"answers {masked(self.said)}, right {self.right}"
        return f"ThoughtExplorer({what}: {answer}, overlap {masked(self.overlap)})"
