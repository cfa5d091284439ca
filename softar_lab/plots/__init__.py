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
from .beliefs import (
    beliefs_figure,
    draw_beliefs,
    rewards_figure,
    update_beliefs,
    update_rewards,
)
from .charts import draw_bits, draw_calibration, draw_excess, draw_grid, draw_history
from .comparisons import draw_among, draw_intervals, draw_lines, draw_ranking
from .drift import draw_drift, draw_frontier
from .interactive import history_figure
from .languages import draw_simplex, draw_trie
from .matrices import draw_matrices
from .paths import draw_path, draw_paths
from .plane import TRAIL, plane_state
from .river import draw_river, river_state, shared_steps
from .style import ACCENT, COLORMAP, GREY, MANY, axis_label, visible
from .sums import draw_offsets, draw_reading, draw_sum
from .tokens import draw_neighbours, draw_rows, draw_tokens, tokens_html
from .traces import draw_trace
from .windows import answers_html, draw_window, slots_html, window_html

__all__ = [
    "ACCENT",
    "COLORMAP",
    "GREY",
    "MANY",
    "TRAIL",
    "answers_html",
    "attention_figure",
    "axis_label",
    "beliefs_figure",
    "draw_among",
    "draw_attention",
    "draw_beliefs",
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
    "draw_sum",
    "draw_tokens",
    "draw_trace",
    "draw_trie",
    "draw_window",
    "heads_figure",
    "history_figure",
    "mark_head",
    "mark_query",
    "plane_state",
    "rewards_figure",
    "river_state",
    "shared_steps",
    "slots_html",
    "tokens_html",
    "update_attention",
    "update_beliefs",
    "update_heads",
    "update_rewards",
    "visible",
    "window_html",
]
