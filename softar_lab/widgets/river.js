// Draws rivers: one column per step, its candidates stacked by probability, the chosen one framed.
// Everything it shows is in one synced trait, so nothing waits for the kernel; only columns in view are drawn.
const SVG = "http://www.w3.org/2000/svg";
const TEXT = 22, STACK = 112, STRIP = 8, GAP = 16, EDGE = 3, PAD = 5;
const LETTER = 8.4;  // width of a character of the text, in px at 14 px monospace
const SHADES = {  // of the candidates, the most probable first
  soft: ["#0072b2", "#56b4e9", "#8ccbf0", "#b5def6", "#d3ebf9"],  // all of them are read on
  hard: ["#0072b2", "#b9d6e8", "#cfe2ee", "#dfecf4", "#ebf3f8"],  // only the chosen one is
};
const STYLE = `
.softar-river .text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 13.5em; overflow-y: auto; margin: 2px 0 6px; }
.softar-river .text b { font: 600 12px var(--jp-ui-font-family, sans-serif); margin-right: .8em; }
.softar-river .text .prompt { color: var(--jp-content-font-color2, #5a606e); }
.softar-river .text [data-step] { cursor: pointer; }
.softar-river .text .soft { border-bottom: 2px dotted #0072b2; }
.softar-river .text .forced { font-weight: bold; color: #d55e00; }
.softar-river .text .shared { opacity: .5; }
.softar-river .text .now { outline: 2px solid #d55e00; }
.softar-river .stale { opacity: .35; }
.softar-river { font: 14px/1.5 var(--jp-code-font-family, ui-monospace, monospace); color: var(--jp-content-font-color1, #111); }
.softar-river .scroll:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); }
.softar-river .scroll { overflow-x: auto; overflow-y: hidden; }
.softar-river svg { display: block; font: inherit; }
.softar-river svg text { fill: currentColor; pointer-events: none; text-anchor: middle; }
.softar-river .rest { fill: var(--jp-layout-color2, #ecedf1); }
.softar-river .here { fill: var(--jp-layout-color3, #dcdfe6); opacity: .55; }
.softar-river .name { text-anchor: start; font-size: 12px; fill: var(--jp-content-font-color2, #5a606e); }
.softar-river .prompt { text-anchor: end; fill: var(--jp-content-font-color2, #5a606e); }
.softar-river .column { cursor: pointer; }
.softar-river .details { min-height: 3em; padding: 4px 2px; }
.softar-river .details > div { display: flex; flex-wrap: wrap; gap: 4px; align-items: baseline; margin-bottom: 3px; }
.softar-river button { font: inherit; color: inherit; background: none; border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 4px; padding: 0 6px; }
.softar-river button:enabled { cursor: pointer; }
.softar-river button:enabled:hover { background: var(--jp-layout-color2, #ecedf1); }
.softar-river button[aria-pressed="true"] { border: 2px solid #d55e00; }
.softar-river .soft button[aria-pressed="true"] { border-style: dotted; border-color: #0072b2; }
.softar-river .note { color: var(--jp-content-font-color2, #5a606e); font-size: 12px; }
`;

const make = (parent, name, attributes = {}, text) => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
};
const percent = p => `${(100 * p).toFixed(p < 0.095 ? 1 : 0)} %`;
// From pale yellow to dark red, as the strip of distances needs: 0 is on a symbol.
const heat = share => {
  const stops = [[255, 255, 204], [254, 178, 76], [240, 59, 32], [128, 0, 38]];
  const at = Math.min(0.9999, Math.max(0, share)) * 3, i = Math.floor(at);
  return `rgb(${stops[i].map((a, k) => Math.round(a + (at - i) * (stops[i + 1][k] - a)))})`;
};

// The left edge of each column, and the right edge of the last: wide enough for every chosen symbol.
const places = ({ symbols, rivers, prompt }) => {
  const edges = [Math.max(70, LETTER * prompt.length + 14)];
  for (let t = 0; t < Math.max(0, ...rivers.map(river => river.ids.length)); t++) {
    const longest = Math.max(1, ...rivers.map(({ ids }) => (t < ids.length ? symbols[ids[t]].length : 0)));
    edges.push(edges[t] + Math.max(20, LETTER * longest + 8));
  }
  return edges;
};

// Puts the widgets' state into the notebook, as Jupyter's "save widget state" does. JupyterLab prefers a view to the
// still beside it and says "model not found" where the kernel is gone; with its state the view is drawn again.
const WIDGETS = "application/vnd.jupyter.widget-state+json", MOST = 400_000;
const keep = async ({ widget_manager: manager }) => {
  const notebook = manager?.context?.model;
  if (!notebook?.setMetadata || !manager.get_state) return;
  const all = await manager.get_state({ drop_defaults: true });
  const small = Object.entries(all.state).filter(([, one]) => JSON.stringify(one).length < MOST);
  notebook.setMetadata("widgets", { [WIDGETS]: { ...all, state: Object.fromEntries(small) } });
};

function render({ model, el, signal }) {
  const root = document.createElement("div");
  root.className = "softar-river";
  const texts = document.createElement("div");
  const style = document.createElement("style");
  style.textContent = STYLE;
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "slider");
  scroll.setAttribute("aria-label", "step of the text: arrow keys move");
  const svg = make(scroll, "svg");
  const details = document.createElement("div");
  details.className = "details";
  root.append(style, texts, scroll, details);
  el.append(root);

  let later, data, edges, chosen, hovered = null, drawn = [], labels = [], marks = [];
  const count = () => edges.length - 1;
  const clamp = t => Math.max(0, Math.min(count() - 1, t));
  const top = i => i * (TEXT + STACK + STRIP + GAP + TEXT);

  const column = (parent, river, i, t) => {
    const y = top(i) + TEXT, x = edges[t], width = edges[t + 1] - x, middle = x + width / 2;
    const { symbols } = data, shared = i > 0 && t < data.shared, soft = river.soft[t];
    const group = make(parent, "g", { class: "column", "data-step": t, "data-river": i,
      opacity: shared || river.stale ? 0.35 : 1 });
    // 1) the symbol, under it what else it could have been
    const mark = river.forced.includes(t) ? "font-weight:bold;fill:#d55e00;" : "";
    make(group, "text", { x: middle, y: y + 16, style: mark + (soft ? "text-decoration:underline dotted #0072b2" : "") },
      symbols[river.ids[t]]);
    const base = y + TEXT + STACK;
    make(group, "rect", { class: "rest", x: x + 1, y: y + TEXT, width: width - 2, height: STACK });
    let filled = 0, frame;
    river.top[t].forEach((id, rank) => {
      const height = STACK * river.p[t][rank] / 1000, isChosen = id === river.ids[t];
      if (height < 0.6 && !isChosen) return;
      filled += height;
      const shades = SHADES[soft ? "soft" : "hard"];
      const fill = isChosen ? shades[0] : shades[Math.min(1 + rank - (rank > river.top[t].indexOf(river.ids[t])), 4)];
      const box = { x: x + 1, y: base - filled, width: width - 2, height, fill, "data-id": id };
      make(group, "rect", box);
      if (isChosen) frame = box;
      if (height > 13 && LETTER * symbols[id].length < width + 6)
        make(group, "text", { x: middle, y: base - filled + height / 2 + 4, "font-size": 12,
          style: `fill:${isChosen ? "white" : "#20303c"}` }, symbols[id]);
    });
    if (frame)
      make(group, "rect", { x: frame.x + 0.5, width: frame.width - 1, y: frame.y, height: Math.max(1.5, frame.height),
        fill: "none", "pointer-events": "none", "stroke-width": soft ? 1.5 : 2,
        stroke: soft ? "#083a5b" : "#d55e00", "stroke-dasharray": soft ? "2 2" : "none" });
    // 2) the strip
    if (data.strip)
      make(group, "rect", { x: x + 1, y: base + EDGE, width: width - 2, height: STRIP,
        fill: river.strip[t] === null ? "none" : heat(river.strip[t] / data.strip.most) });
  };

  // Draws the columns in view; only marks and labels move while these stay the same.
  const draw = (anew = false) => {
    const left = scroll.scrollLeft, right = left + (scroll.clientWidth || 1200);
    const first = Math.max(0, edges.findIndex(x => x > left) - 8);
    let last = edges.findIndex(x => x > right);
    last = last < 0 ? count() : Math.min(count(), last + 8);
    if (anew || first !== drawn[0] || last !== drawn[1]) {
      drawn = [first, last];
      svg.replaceChildren();
      labels = [];
      marks = data.rivers.map((_, i) =>
        make(svg, "rect", { class: "here", y: top(i) + TEXT, height: TEXT + STACK + STRIP + EDGE }));
      data.rivers.forEach((river, i) => {
        labels.push(make(svg, "text", { class: "name", y: top(i) + 15 }, river.name));
        make(svg, "text", { class: "prompt", x: edges[0] - 6, y: top(i) + TEXT + 16 }, data.prompt);
        if (data.strip)
          make(svg, "text", { class: "name", x: 2, y: top(i) + 2 * TEXT + STACK + EDGE + STRIP }, data.strip.name);
        for (let t = first; t < Math.min(last, river.ids.length); t++) column(svg, river, i, t);
      });
    }
    for (const label of labels) label.setAttribute("x", left + 2);
    marks.forEach((mark, i) => {
      const has = chosen < data.rivers[i].ids.length;
      mark.setAttribute("x", has ? edges[chosen] : 0);
      mark.setAttribute("width", has ? edges[chosen + 1] - edges[chosen] : 0);
    });
  };

  // One line per river: all candidates of a step, each a button that forces it.
  const tell = () => {
    const t = clamp(hovered ?? chosen);
    details.replaceChildren();
    if (!count()) return;
    data.rivers.forEach((river, i) => {
      if (t >= river.ids.length) return;
      const line = document.createElement("div"), note = document.createElement("span");
      line.className = river.soft[t] ? "soft" : "hard";
      note.className = "note";
      const state = river.forced.includes(t) ? "forced by you" : river.soft[t] ? "stays soft" : "becomes a symbol";
      const far = data.strip && river.strip[t] !== null ? `, ${data.strip.name} ${river.strip[t].toPrecision(2)}` : "";
      note.textContent = `${river.name} step ${t}: ${state}${far}`;
      line.append(note);
      river.top[t].forEach((id, rank) => {
        const button = document.createElement("button"), isChosen = id === river.ids[t];
        button.textContent = `${data.symbols[id]} ${percent(river.p[t][rank] / 1000)}`;
        button.setAttribute("aria-pressed", isChosen);
        button.disabled = isChosen || !data.forcing;
        button.title = data.forcing && !isChosen ? "write on from this one" : "";
        button.onclick = () => force(i, t, id);
        line.append(button);
      });
      details.append(line);
    });
    scroll.setAttribute("aria-valuemin", 0);
    scroll.setAttribute("aria-valuemax", count() - 1);
    scroll.setAttribute("aria-valuenow", t);
    scroll.setAttribute("aria-valuetext", [...details.children].map(line => line.textContent).join("; "));
    for (const letter of texts.querySelectorAll(".now")) letter.classList.remove("now");
    for (const letter of texts.querySelectorAll(`[data-step="${t}"]`)) letter.classList.add("now");
  };

  // The whole texts, each letter the redder the more it surprised the model.
  const write = () => {
    texts.replaceChildren(...data.rivers.map((river, i) => {
      const text = document.createElement("div"), prompt = document.createElement("span");
      text.className = river.stale ? "text stale" : "text";
      text.dataset.river = i;
      if (river.name) {
        const name = document.createElement("b");
        name.textContent = river.name;
        text.append(name);
      }
      prompt.className = "prompt";
      prompt.textContent = data.start;
      text.append(prompt);
      river.ids.forEach((id, t) => {
        const letter = document.createElement("span"), p = river.p[t][river.top[t].indexOf(id)] / 1000;
        const piece = river.pieces ? river.pieces[t] : data.tokens[id];
        letter.textContent = piece === "\n" ? "↵\n" : piece;
        letter.dataset.step = t;
        const bits = p > 0 ? -Math.log2(p) : 8;
        if (bits > 0.1) letter.style.background = `rgba(213, 94, 0, ${(0.75 * Math.min(1, bits / 8)).toFixed(2)})`;
        letter.className = [river.soft[t] && "soft", river.forced.includes(t) && "forced",
          i > 0 && t < data.shared && "shared"].filter(Boolean).join(" ");
        text.append(letter);
      });
      return text;
    }));
  };

  const force = (river, step, id) => {
    if (data.forcing) model.send({ force: { river, step, symbol: id } });
  };
  const show = t => {
    chosen = clamp(t);
    const left = edges[chosen], right = edges[chosen + 1], seen = scroll.scrollLeft, width = scroll.clientWidth;
    if (left < seen + 20 || right > seen + width - 20) scroll.scrollLeft = left - width / 2;
    draw();
    tell();
  };
  const choose = t => {
    show(t);
    model.set("step", chosen);
    model.save_changes();
  };
  const build = () => {
    const atEnd = edges && scroll.scrollLeft + scroll.clientWidth > edges[count()] - 40;
    data = model.get("rivers");
    edges = places(data);
    svg.setAttribute("width", edges[count()] + 10);
    svg.setAttribute("height", Math.max(0, top(data.rivers.length) - 8));
    if (atEnd && data.writing) scroll.scrollLeft = edges[count()];
    chosen = clamp(model.get("step"));
    write();
    draw(true);
    tell();
    clearTimeout(later);
    if (!data.writing) later = setTimeout(() => keep(model), 1000);
  };

  // -- mouse and keyboard: what is seen at a place is found by the element there
  const at = event => event.target.closest(".column");
  svg.addEventListener("click", event => {
    const group = at(event);
    if (!group) return;
    const t = Number(group.dataset.step), i = Number(group.dataset.river), id = event.target.dataset.id;
    if (id !== undefined && Number(id) !== data.rivers[i].ids[t] && data.forcing) force(i, t, Number(id));
    else choose(t);
    scroll.focus({ preventScroll: true });
  });
  texts.addEventListener("click", event => {
    if (event.target.dataset.step === undefined) return;
    choose(Number(event.target.dataset.step));
    scroll.focus({ preventScroll: true });
  });
  svg.addEventListener("mousemove", event => {
    const group = at(event), t = group ? Number(group.dataset.step) : null;
    if (t !== hovered) { hovered = t; tell(); }
  });
  root.addEventListener("mouseleave", () => { hovered = null; tell(); });
  scroll.addEventListener("keydown", event => {
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: count() - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();  // else the notebook moves to another cell
    hovered = null;
    choose(to);
  });
  let waiting = false;
  scroll.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  const stepped = () => { if (model.get("step") !== chosen) show(model.get("step")); };
  model.on("change:rivers", build);
  model.on("change:step", stepped);
  const size = new ResizeObserver(() => draw());
  build();
  size.observe(scroll);
  signal?.addEventListener("abort", () => {
    clearTimeout(later);
    model.off("change:rivers", build);
    model.off("change:step", stepped);
    size.disconnect();
  });
}

export default { render };
