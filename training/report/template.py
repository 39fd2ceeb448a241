"""Style and script of the report's page."""

STYLE = """
:root { --page: #f6f7f9; --card: #ffffff; --ink: #1d2128; --soft: #626b78; --line: #e2e5ea;
  --grid: #e9ecf0; --accent: #4e79a7; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e6e8ec;
  --soft: #99a1ad; --line: #2d323a; --grid: #2a2f37; --accent: #7ba3cf; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans CJK JP", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 24px; }
header h1 { margin: 0; font-size: 24px; overflow-wrap: anywhere; }
header p, .card > p { margin: 2px 0 10px; color: var(--soft); font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 12px;
  margin: 18px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 10px 14px; }
.tile h3 { margin: 0; font-size: 12px; font-weight: 500; color: var(--soft); }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { font-size: 12px; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.card { padding: 14px 16px; min-width: 0; }
.card.wide { grid-column: 1 / -1; }
section.card { margin-top: 14px; }
.card h2 { margin: 0; font-size: 15px; }
.plot { height: 330px; }
.wide .plot { height: 420px; }
.none { color: var(--soft); font-style: italic; }
.hint { color: var(--soft); font-size: 13px; }
button.scale { float: right; font: 12px system-ui, sans-serif; color: var(--soft);
  background: none; border: 1px solid var(--line); border-radius: 5px; padding: 2px 8px;
  cursor: pointer; }
.chips { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 8px 0; font-size: 13px; }
.chips i, td i { color: var(--soft); font-style: normal; }
.scroll { max-height: 520px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { position: sticky; top: 0; background: var(--card); text-align: left; font-weight: 600;
  color: var(--soft); }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th:nth-child(-n+4), td:nth-child(-n+4) { white-space: nowrap; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }
.kind { font-weight: 600; }
.kind.clip { color: #b97f1d; } .kind.skip { color: #dd5559; }
.kind.lower_rate, .kind.climbing { color: #a36a96; } .kind.restore_rate { color: #4c9a43; }
.kind.roll_back, .kind.stop { color: #d2402e; }
.sounds { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0; } figcaption { font-size: 12px; color: var(--soft); margin-bottom: 4px; }
@media (max-width: 900px) { .charts { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { .card { break-inside: avoid; } button.scale { display: none; } }
"""

# Charts share their range of steps; colours follow the reader's light or dark scheme.
SCRIPT = """
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: of("--grid"), linecolor: of("--line"), zerolinecolor: of("--line") };
    return { ink: of("--ink"), card: of("--card"), line: of("--line"), axis };
  };
  const theme = (layout) => {
    const c = colours(), flat = {
      "font.color": c.ink, "font.size": 12, "font.family": getComputedStyle(document.body).fontFamily,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": c.card, "hoverlabel.bordercolor": c.line,
      "hoverlabel.font.color": c.ink, "hoverlabel.align": "left" };
    for (const axis of ["xaxis", "yaxis", "yaxis2"])
      if (layout[axis]) for (const [key, value] of Object.entries(c.axis))
        flat[axis + "." + key] = value;
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
  const config = { responsive: true, displayModeBar: false };
  let linking = false;
  const link = (from, change) => {
    if (linking) return;
    const low = change["xaxis.range[0]"], high = change["xaxis.range[1]"];
    const all = change["xaxis.autorange"];
    if (low === undefined && !all) return;
    linking = true;
    const same = all ? { "xaxis.autorange": true } : { "xaxis.range": [low, high] };
    const others = plots.filter((plot) => plot !== from && plot.data);
    Promise.all(others.map((plot) => Plotly.relayout(plot, same))).then(() => { linking = false; });
  };
  for (const plot of plots) {
    const figure = figures[plot.dataset.figure];
    apply(figure.layout, theme(figure.layout));
    Plotly.newPlot(plot, figure.data, figure.layout, config).then(() => {
      plot.on("plotly_relayout", (change) => link(plot, change));
    });
  }
  dark.addEventListener("change", () => {
    for (const plot of plots) Plotly.relayout(plot, theme(plot.layout));
  });
  for (const button of document.querySelectorAll("button.scale")) {
    const plot = plots[button.dataset.figure];
    const name = () => {
      button.textContent = plot.layout.yaxis.type === "log" ? "linear scale" : "log scale";
    };
    name();
    button.addEventListener("click", () => {
      const log = plot.layout.yaxis.type === "log", title = plot.layout.yaxis.title.text;
      const bare = title.replace(/ \\(log\\)$/, "");
      Plotly.relayout(plot, { "yaxis.type": log ? "linear" : "log", "yaxis.autorange": true,
        "yaxis.title.text": log ? bare : bare + " (log)" }).then(name);
    });
  }
  for (const box of document.querySelectorAll(".chips input"))
    box.addEventListener("change", () => {
      for (const row of document.querySelectorAll("tbody tr"))
        if (row.dataset.kind === box.dataset.kind) row.hidden = !box.checked;
    });
})();
"""
