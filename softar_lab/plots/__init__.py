"""Every picture of the lab: matplotlib beside a claim, plotly for hovering and turning.

Drawing never computes: a picture gets finished coordinates, trajectories and histories.
"""

from .attention import (
    attention_figure,
    draw_attention,
    heads_figure,
    mark_head,
    mark_query,
    update_attention,
    update_heads,
)
from .charts import draw_bits, draw_calibration, draw_excess, draw_grid, draw_history
from .comparisons import draw_among, draw_intervals, draw_lines, draw_ranking
from .drift import draw_drift, draw_frontier
from .hull import (
    CURVES,
    curves_figure,
    draw_step,
    hull_figure,
    mixture_html,
    move_cursor,
    update_curves,
    update_hull,
)
from .interactive import TRAIL, history_figure, plane_figure, update_plane
from .languages import draw_simplex, draw_trie
from .matrices import draw_matrices
from .paths import draw_path, draw_paths
from .river import draw_river, river_state, shared_steps
from .style import ACCENT, COLORMAP, GREY, MANY, axis_label, visible
from .sums import draw_offsets, draw_reading, draw_sum
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
from .tokens import draw_neighbours, draw_rows, draw_tokens, tokens_html
from .traces import draw_trace
from .windows import answers_html, draw_window, slots_html, window_html

__all__ = [
    "ACCENT",
    "COLORMAP",
    "CURVES",
    "GREY",
    "MANY",
    "SETTINGS",
    "TRAIL",
    "answers_html",
    "attention_figure",
    "axis_label",
    "candidates_html",
    "curves_figure",
    "difference_html",
    "draw_among",
    "draw_attention",
    "draw_bits",
    "draw_calibration",
    "draw_drift",
    "draw_excess",
    "draw_frontier",
    "draw_grid",
    "draw_history",
    "draw_intervals",
    "draw_lines",
    "draw_matrices",
    "draw_neighbours",
    "draw_offsets",
    "draw_path",
    "draw_paths",
    "draw_ranking",
    "draw_reading",
    "draw_river",
    "draw_rows",
    "draw_simplex",
    "draw_step",
    "draw_sum",
    "draw_together",
    "draw_tokens",
    "draw_trace",
    "draw_trie",
    "draw_window",
    "drift_figure",
    "heads_figure",
    "history_figure",
    "hull_figure",
    "mark_head",
    "mark_query",
    "mixture_html",
    "move_cursor",
    "plane_figure",
    "river_state",
    "shared_steps",
    "slots_html",
    "step_hover",
    "text_html",
    "together_figure",
    "tokens_html",
    "update_attention",
    "update_curves",
    "update_drift",
    "update_heads",
    "update_hull",
    "update_plane",
    "update_symbols",
    "update_together",
    "visible",
    "window_html",
]
