"""Style and script that only the training report's page has."""

STYLE = """
.tiles { grid-template-columns: repeat(5, minmax(0, 1fr)); }
button.scale { float: right; margin-left: 8px; font-size: 12px; color: var(--soft);
  background: none; border-radius: 5px; padding: 2px 8px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 8px 0; font-size: 13px; }
.chips i, td i, figure i { color: var(--soft); font-style: normal; }
.scroll { max-height: 520px; }
th:nth-child(-n+4), td:nth-child(-n+4) { white-space: nowrap; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }
.kind { font-weight: 600; }
.kind.clip { color: var(--rejected); } .kind.restore_rate { color: var(--kept); }
.kind.lower_rate, .kind.climbing { color: var(--lowered); }
.kind.skip, .kind.roll_back, .kind.stop { color: var(--quarantined); }
.sounds { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0; } figcaption { font-size: 12px; color: var(--soft); margin-bottom: 4px; }
@media (max-width: 1000px) { .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media print { button.scale { display: none; } }
"""

# Charts share their range of steps.
SCRIPT = """
(() => {
  const { all, plots, drawn } = page;
  let linking = false;
  const link = (from, change) => {
    if (linking) return;
    const low = change["xaxis.range[0]"], high = change["xaxis.range[1]"];
    const whole = change["xaxis.autorange"];
    if (low === undefined && !whole) return;
    linking = true;
    const same = whole ? { "xaxis.autorange": true } : { "xaxis.range": [low, high] };
    const others = plots.filter((plot) => plot !== from && plot.data);
    Promise.all(others.map((plot) => Plotly.relayout(plot, same))).then(() => { linking = false; });
  };
  drawn.then(() => {
    for (const plot of plots) plot.on("plotly_relayout", (change) => link(plot, change));
  });
  for (const button of all("button.scale")) {
    const plot = button.closest(".card").querySelector(".plot");
    const name = () => {
      const other = plot.layout.yaxis.type === "log" ? "linear" : "log";
      button.textContent = other + " scale";
      button.setAttribute("aria-label", other + " scale of " + button.parentElement.firstChild.data);
    };
    drawn.then(name);
    button.addEventListener("click", () => {
      const log = plot.layout.yaxis.type === "log", title = plot.layout.yaxis.title.text;
      const bare = title.replace(/ \\(log\\)$/, "");
      Plotly.relayout(plot, { "yaxis.type": log ? "linear" : "log", "yaxis.autorange": true,
        "yaxis.title.text": log ? bare : bare + " (log)" }).then(name);
    });
  }
  for (const box of all(".chips input"))
    box.addEventListener("change", () => {
      for (const kind of all("td .kind"))
        if (kind.dataset.kind === box.dataset.kind) kind.closest("tr").hidden = !box.checked;
    });
})();
"""
