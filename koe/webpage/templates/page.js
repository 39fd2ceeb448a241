// Script of both pages. Texts of the data reach the page by `textContent` only.
(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  // Charts: their colours follow the reader's theme.
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

  // Charts that share their range of steps.
  const linked = all(".linked .plot");
  let linking = false;
  const link = (from, change) => {
    const low = change["xaxis.range[0]"], high = change["xaxis.range[1]"];
    const everything = change["xaxis.autorange"];
    if (linking || (low === undefined && !everything)) return;
    linking = true;
    const same = everything ? { "xaxis.autorange": true } : { "xaxis.range": [low, high] };
    const others = linked.filter((plot) => plot !== from && plot.data);
    Promise.all(others.map((plot) => Plotly.relayout(plot, same))).then(() => { linking = false; });
  };
  drawn.then(() => {
    for (const plot of linked) plot.on("plotly_relayout", (change) => link(plot, change));
  });

  // Buttons that switch a chart between a linear and a logarithmic scale.
  for (const button of all("button.scale")) {
    const plot = button.closest(".card").querySelector(".plot");
    const isLog = () => plot.layout.yaxis.type === "log";
    const name = () => {
      const other = isLog() ? "linear" : "log";
      button.textContent = other + " scale";
      button.setAttribute("aria-label", other + " scale of " + plot.dataset.figure);
    };
    drawn.then(name);
    button.addEventListener("click", () => {
      const bare = plot.layout.yaxis.title.text.replace(/ \(log\)$/, "");
      Plotly.relayout(plot, { "yaxis.type": isLog() ? "linear" : "log", "yaxis.autorange": true,
        "yaxis.title.text": isLog() ? bare : bare + " (log)" }).then(name);
    });
  }

  // Histograms show one source at a time.
  const choices = all("select.source");
  const show = (source) => {
    for (const plot of all(".summary + .plot")) {
      const found = plot.data.find((trace) => trace.meta && trace.meta.source === source);
      Plotly.restyle(plot, { visible: plot.data.map((trace) => trace === found) });
      plot.previousElementSibling.textContent =
        found ? found.meta.summary : "This source has no values.";
    }
  };
  for (const choice of choices) choice.addEventListener("change", () => {
    for (const other of choices) other.value = choice.value;
    show(choice.value);
  });
  drawn.then(() => { if (choices.length) show(choices[0].value); });

  // Only one player plays at a time.
  const players = all("audio");
  for (const player of players) player.addEventListener("play", () => {
    for (const other of players) if (other !== player) other.pause();
  });

  // A click into a spectrogram plays from there; a line shows where the player is.
  for (const picture of all(".sound")) {
    const player = picture.nextElementSibling, cursor = picture.querySelector("i");
    const follow = () => {
      const share = player.duration ? player.currentTime / player.duration : 0;
      cursor.style.left = 100 * share + "%";
      cursor.style.opacity = player.currentTime > 0 ? 0.9 : 0;
      if (!player.paused) requestAnimationFrame(follow);
    };
    for (const kind of ["play", "seeked", "pause", "ended"]) player.addEventListener(kind, follow);
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      const go = () => {
        player.currentTime = player.duration * (event.clientX - box.left) / box.width;
        player.play();
      };
      if (player.readyState) go();
      else { player.addEventListener("loadedmetadata", go, { once: true }); player.load(); }
    });
  }

  // Rows of a kind: buttons choose one kind of clip, boxes hide kinds of events.
  const kinds = all("button[data-kind]");
  for (const button of kinds) button.addEventListener("click", () => {
    const kind = button.dataset.kind;
    for (const other of kinds) other.setAttribute("aria-pressed", other === button);
    for (const row of all(".clips tbody tr")) row.hidden = kind !== "all" && row.dataset.kind !== kind;
  });
  if (kinds.length) kinds[0].click();
  for (const box of all("input[data-kind]")) box.addEventListener("change", () => {
    for (const row of all(".events tbody tr"))
      if (row.dataset.kind === box.dataset.kind) row.hidden = !box.checked;
  });

  // The table of what was left out, with its filters.
  const body = document.querySelector(".browser tbody");
  if (!body) return;
  const { columns, records } = read("left-out");
  const rows = records.map((cells) => ({ cells, text: cells.join("\n").toLowerCase() }));
  const filters = all("select[data-column]"), words = document.querySelector("input[type=search]");
  const more = document.getElementById("more"), status = document.getElementById("status");
  const step = 100;
  let limit = step;
  const line = ({ cells }) => {
    const row = document.createElement("tr");
    cells.forEach((text, place) => {
      const cell = row.insertCell();
      cell.textContent = columns[place] === "reason" ? text.replaceAll("_", " ") : text;
      if (columns[place] === "outcome") cell.className = "outcome " + text;
      if (columns[place] === "location") cell.className = "facts";
    });
    return row;
  };
  const draw = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter(({ cells, text }) =>
      filters.every((f) => !f.value || cells[columns.indexOf(f.dataset.column)] === f.value) &&
      wanted.every((word) => text.includes(word)));
    body.replaceChildren(...found.slice(0, limit).map(line));
    status.textContent = found.length.toLocaleString("en") + " match" +
      (found.length > limit ? ", the first " + limit + " are shown" : "");
    more.hidden = found.length <= limit;
  };
  const again = () => { limit = step; draw(); };
  for (const filter of filters) filter.addEventListener("change", again);
  words.addEventListener("input", again);
  more.addEventListener("click", () => { limit += step; draw(); });
  document.getElementById("clear").addEventListener("click", () => {
    for (const filter of filters) filter.value = "";
    words.value = "";
    again();
  });
  draw();
})();
