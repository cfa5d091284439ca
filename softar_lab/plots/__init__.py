"""Every picture of the lab: matplotlib where a claim stands beside it, plotly where one hovers or turns.

Drawing never computes: pictures get coordinates, trajectories and histories that are ready.
"""

from .charts import draw_bits, draw_calibration, draw_excess, draw_grid, draw_history
from .comparisons import draw_among, draw_intervals, draw_lines, draw_ranking
from .drift import draw_drift, draw_frontier, draw_survival
from .hull import CURVES, curves_figure, draw_step, hull_figure, mixture_html, move_cursor, update_curves, update_hull
from .interactive import TRAIL, history_figure, path_figure, update_now, update_path
from .languages import draw_simplex, draw_trie
from .look import ACCENT, COLORMAP, GREY, MANY, axis_label, visible
from .paths import draw_path, draw_paths
from .texts import candidates_html, difference_html, step_hover, text_html
from .together import (
    SETTINGS,
    draw_together,
    drift_figure,
    together_figure,
    update_drift,
    update_symbols,
    update_together,
)

__all__ = [
    "ACCENT",
    "COLORMAP",
    "CURVES",
    "GREY",
    "MANY",
    "SETTINGS",
    "TRAIL",
    "axis_label",
    "candidates_html",
    "curves_figure",
    "difference_html",
    "draw_among",
    "draw_bits",
    "draw_calibration",
    "draw_drift",
    "draw_excess",
    "draw_frontier",
    "draw_grid",
    "draw_history",
    "draw_intervals",
    "draw_lines",
    "draw_path",
    "draw_paths",
    "draw_ranking",
    "draw_simplex",
    "draw_step",
    "draw_survival",
    "draw_together",
    "draw_trie",
    "drift_figure",
    "history_figure",
    "hull_figure",
    "mixture_html",
    "move_cursor",
    "path_figure",
    "step_hover",
    "text_html",
    "together_figure",
    "update_curves",
    "update_drift",
    "update_hull",
    "update_now",
    "update_path",
    "update_symbols",
    "update_together",
    "visible",
]
