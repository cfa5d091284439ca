// Starts each river of a page. In the lab anywidget gives `render` a model that talks to the kernel; here one
// that holds the river's data does: there is nothing to force, since nobody writes on.
const hold = state => {
  const values = { rivers: { ...state, forcing: false, writing: false }, step: 0 }, listeners = {};
  return {
    get: name => values[name],
    set: (name, value) => {
      values[name] = value;
      for (const listener of listeners[`change:${name}`] ?? []) listener();
    },
    on: (event, listener) => { (listeners[event] ??= new Set()).add(listener); },
    off: (event, listener) => { listeners[event]?.delete(listener); },
    save_changes: () => {},
    send: () => {},
  };
};

document.addEventListener("DOMContentLoaded", () => {
  for (const el of document.querySelectorAll("div.river")) {
    const state = JSON.parse(el.querySelector("script").textContent);
    el.replaceChildren();  // the still picture, for readers without scripts
    render({ model: hold(state), el });
  }
});
