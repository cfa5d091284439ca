// Draws a plane: a few steps of a path among the symbols, and the mixture nearest to the last of them.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 300, EDGE = 26;
const BLUE = "#0072b2", ORANGE = "#d55e00";
const STYLE = `
.softar-plane { font: 13px/1.4 var(--jp-ui-font-family, sans-serif); color: var(--jp-content-font-color1, #111); }
.softar-plane svg { display: block; width: 100%; height: ${HEIGHT}px; border: 1px solid var(--jp-border-color2, #e0e0e0); box-sizing: border-box; }
.softar-plane svg text { font: 13px var(--jp-code-font-family, monospace); text-anchor: middle; fill: var(--jp-content-font-color2, #5a606e); }
.softar-plane svg text.heavy { font-weight: bold; fill: var(--jp-content-font-color1, #111); }
.softar-plane p { margin: 4px 0; font-size: 12px; color: var(--jp-content-font-color2, #5a606e); }
`;
const percent = share => `${Math.round(100 * share)} %`;

const make = (parent, name, attributes, text) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
};

// Maps points to pixels, the same scale on both axes, so that distances stay true.
const placer = (points, width) => {
  const [xs, ys] = [0, 1].map(k => points.map(point => point[k]));
  const [left, low] = [Math.min(...xs), Math.min(...ys)];
  const [across, up] = [Math.max(...xs) - left || 1, Math.max(...ys) - low || 1];
  const scale = Math.min((width - 2 * EDGE) / across, (HEIGHT - 2 * EDGE) / up);
  return ([x, y]) => [
    width / 2 + (x - left - across / 2) * scale,
    HEIGHT / 2 - (y - low - up / 2) * scale,
  ];
};

function render({ model, el, signal }) {
  const root = document.createElement("div"), style = document.createElement("style");
  root.className = "softar-plane";
  style.textContent = STYLE;
  const svg = make(root, "svg", { role: "img" }), note = document.createElement("p");
  root.prepend(style);
  root.append(note);
  el.append(root);

  const draw = () => {
    const state = model.get("plane"), width = svg.clientWidth || 600;
    svg.replaceChildren();
    if (!state.trail?.length) return;
    const { symbols, trail, mixture } = state, now = trail.at(-1);
    const place = placer([...symbols.map(symbol => symbol.slice(1, 3)), ...trail, mixture], width);
    const line = (from, to, more) => {
      const [[x1, y1], [x2, y2]] = [place(from), place(to)];
      make(svg, "line", { x1, y1, x2, y2, ...more });
    };
    // 1) the mixture: spokes to its symbols, and what of the soft token no mixture reaches
    for (const [, x, y, weight] of symbols)
      if (weight) line(mixture, [x, y], { stroke: BLUE, "stroke-width": 1 + 3 * weight, "stroke-dasharray": "2 3" });
    line(mixture, now, { stroke: ORANGE, "stroke-width": 4 });
    // 2) the latest steps
    trail.slice(1).forEach((point, i) => line(trail[i], point, { stroke: ORANGE, "stroke-width": 1.4, opacity: 0.7 }));
    trail.forEach((point, i) => {
      const [cx, cy] = place(point), last = i === trail.length - 1;
      const dot = make(svg, "circle", { cx, cy, r: last ? 8 : 3.5, stroke: ORANGE, "stroke-width": 2.5,
        fill: last ? "none" : ORANGE });
      make(dot, "title", {}, `step ${state.first + i}`);
    });
    const [x, y] = place(mixture);
    make(svg, "path", { d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z`, fill: BLUE });
    // 3) the symbols, on top
    for (const [text, sx, sy, weight] of symbols) {
      const [px, py] = place([sx, sy]);
      make(svg, "text", { x: px, y: py + 4, class: weight ? "heavy" : "" }, text);
    }
    const heavy = symbols.filter(symbol => symbol[3]).sort((a, b) => b[3] - a[3]).slice(0, 6);
    const mixed = heavy.map(([text, , , weight]) => `${text} ${percent(weight)}`).join(" · ");
    const said = `Nearest mixture of symbols (diamond): ${mixed}. The soft token (ring) lies ${state.off_hull.toPrecision(2)}`
      + ` off it. This plane holds ${percent(state.held)} of these steps, ${percent(state.table)} of the table:`
      + " what looks close may be far.";
    note.textContent = said;
    svg.setAttribute("aria-label", said);
  };
  model.on("change:plane", draw);
  const size = new ResizeObserver(draw);
  size.observe(svg);
  draw();
  signal?.addEventListener("abort", () => {
    model.off("change:plane", draw);
    size.disconnect();
  });
}

export default { render };
