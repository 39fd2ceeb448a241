"""Script of every page: draws the charts, whose colours follow the reader's scheme.

It leaves `page` to the page's own script: `all` (elements by selector), `read` (JSON by id),
`plots` (elements of the charts), `drawn` (a promise for all of them).
"""

SCRIPT = r"""
const page = (() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures"), plots = all(".plot");
  const theme = (layout) => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    const flat = {
      "font.color": of("--ink"), "font.size": 12,
      "font.family": getComputedStyle(document.body).fontFamily,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": of("--card"), "hoverlabel.bordercolor": of("--line"),
      "hoverlabel.font.color": of("--ink"), "hoverlabel.align": "left" };
    for (const axis of ["xaxis", "yaxis", "yaxis2"]) if (layout[axis]) {
      flat[axis + ".gridcolor"] = of("--grid");
      for (const part of ["line", "tick", "zeroline"]) flat[axis + "." + part + "color"] = of("--line");
    }
    return flat;
  };
  const apply = (layout, flat) => {
    for (const [path, value] of Object.entries(flat)) {
      const keys = path.split("."), last = keys.pop();
      let at = layout;
      for (const key of keys) at = at[key] = at[key] || {};
      at[last] = value;
    }
  };
  const drawn = Promise.all(plots.map((plot) => {
    const { data, layout } = figures[plot.dataset.figure];
    apply(layout, theme(layout));
    return Plotly.newPlot(plot, data, layout, { responsive: true, displayModeBar: false });
  }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of plots) Plotly.relayout(plot, theme(plot.layout));
  });
  return { all, read, plots, drawn };
})();
"""
