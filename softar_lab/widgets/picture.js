// Draws a plotly figure from its state: what it finds when it is ready, and every change from then on.
// plotly itself comes from the kernel once a page, not once a figure.
const libraries = (globalThis.softarPlotly ??= {});
const CONFIG = { displayModeBar: false };

const load = async (model) => {
  const id = model.get("library").replace("IPY_MODEL_", "");
  const library = await model.widget_manager.get_model(id);
  return (libraries[model.get("version")] ??= (async () => {
    const parts = ["const module = { exports: {} };\n", library.get("value"), "\nexport default module.exports;"];
    const url = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
    return (await import(url)).default;
  })());
};

export default {
  async render({ model, el, signal }) {
    const plot = document.createElement("div");
    el.append(plot);
    const plotly = await load(model);
    // plotly writes into what it is given, and the state is not its to change
    const draw = () =>
      plotly.react(plot, structuredClone(model.get("traces")), structuredClone(model.get("figure_layout")), CONFIG);
    await draw();
    plot.on("plotly_click", ({ points }) => {
      const { curveNumber, x, y } = points[0];
      model.send({ clicked: { trace: curveNumber, x, y } });
    });
    model.on("change:traces change:figure_layout", draw);
    const size = new ResizeObserver(() => plot.offsetParent && plotly.Plots.resize(plot));
    size.observe(el);
    signal?.addEventListener("abort", () => {
      model.off("change:traces change:figure_layout", draw);
      size.disconnect();
      plotly.purge(plot);
    });
  },
};
