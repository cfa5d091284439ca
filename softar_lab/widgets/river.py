"""River: what a model held at each step, in columns under its text; losing candidates can be forced."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from torch import Tensor

from .. import plots
from ..core.trajectory import Trajectory
from ..evidence import masked
from .panel import with_still


class River(anywidget.AnyWidget):
    """Rivers of one or more trajectories on one axis: hover, click, or use the arrow keys.

    Under each symbol of the text stand its candidates, stacked by probability, the chosen one
    framed: solid where the step became a symbol, dotted where it stayed soft. The strip below says
    how far the soft token was from every symbol. All of it is one synced trait (`rivers`), so the
    browser moves among steps without the kernel.

    Args:
        trajectories: by name, of one vocabulary; they may also come later, by `show`.
        spell: the text of a symbol, where it is not the symbol itself (`WordAlphabet.decode`).
    """

    _esm = Path(__file__).with_suffix(".js")
    rivers = traitlets.Dict().tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)

    def __init__(
        self,
        trajectories: Mapping[str, Trajectory] | None = None,
        spell: Callable[[str], str] = str,
    ):
        self.trajectories, self.spell = dict(trajectories or {}), spell
        self._force: Callable[[str, int, str], None] | None = None
        self._strip: Mapping[str, Tensor] | None = None
        super().__init__(rivers=self._state())
        self.on_msg(lambda _, content, __: self._asked(content))

    def show(
        self,
        trajectories: Mapping[str, Trajectory],
        strip: Mapping[str, Tensor] | None = None,
        strip_name: str = "distance",
        writing: bool = False,
        stale: Collection[str] = (),
    ) -> None:
        """Show other trajectories, or more of the same.

        Args:
            trajectories: by name, of one vocabulary.
            strip: a number (T,) per step, by name; a trajectory that it does not name has none.
                None: the distance to the closest row.
            strip_name: what these numbers are.
            writing: whether more steps will follow; then the view stays at the end.
            stale: the names of those that were written for other choices; they are drawn pale.
        """
        self.trajectories, self._strip = dict(trajectories), strip
        self.rivers = self._state(strip_name, writing, stale)

    def on_force(self, handler: Callable[[str, int, str], None]) -> None:
        """Call `handler(name, step, symbol)` where a reader wants another candidate chosen.

        Losing candidates can be clicked from now on.
        """
        self._force = handler
        self.rivers = {**self.rivers, "forcing": True}

    @property
    def river(self) -> "River":
        """The river itself, as a panel's `river` is the one it has."""
        return self

    def still(self):
        """A matplotlib figure of the first steps; None without a trajectory."""
        if not self.trajectories:
            return None
        return plots.draw_river(self.trajectories, spell=self.spell, strip=self._strip)

    def _state(
        self, strip_name: str = "distance", writing: bool = False, stale: Collection[str] = ()
    ) -> dict:
        state = plots.river_state(self.trajectories, self.spell, self._strip, strip_name, stale)
        return {**state, "forcing": self._force is not None, "writing": writing}

    def _asked(self, content: dict) -> None:
        """A candidate was clicked: the browser numbers rivers, and symbols as in `rivers`."""
        asked = content.get("force") or {}
        names = list(self.trajectories)
        if self._force is None or not 0 <= asked.get("river", -1) < len(names):
            return
        name, step = names[asked["river"]], asked["step"]
        trajectory, river = self.trajectories[name], self.rivers["rivers"][asked["river"]]
        if not 0 <= step < len(trajectory) or asked["symbol"] not in river["top"][step]:
            return  # it belongs to what was shown before
        self._force(name, step, self.rivers["tokens"][asked["symbol"]])

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return with_still(self, super()._repr_mimebundle_(**options))

    def __repr__(self) -> str:
        texts = (
            f"{name} {masked(repr(self.spell(one.text)))}"
            for name, one in self.trajectories.items()
        )
        return f"River({'; '.join(texts)})"
