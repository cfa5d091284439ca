"""Every picture of the lab: matplotlib where a claim stands beside it, plotly where one hovers or turns.

Drawing never computes: pictures get coordinates, trajectories and histories that are ready.
"""

from .charts import draw_bits, draw_calibration, draw_excess, draw_grid, draw_history
from .comparisons import draw_among, draw_intervals, draw_lines, draw_ranking
from .drift import draw_drift, draw_frontier, draw_survival
from .interactive import TRAIL, history_figure, path_figure, update_now, update_path
from .languages import draw_simplex, draw_trie
from .look import ACCENT, COLORMAP, GREY, axis_label, visible
from .paths import draw_path, draw_paths
from .texts import candidates_html, step_hover, text_html

__all__ = [
    "ACCENT",
    "COLORMAP",
    "GREY",
    "TRAIL",
    "axis_label",
    "candidates_html",
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
    "draw_survival",
    "draw_trie",
    "history_figure",
    "path_figure",
    "step_hover",
    "text_html",
    "update_now",
    "update_path",
    "visible",
]
