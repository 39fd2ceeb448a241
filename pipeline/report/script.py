"""Script of the data report's page: the choice of a source, players, the browser.

Texts of the corpus reach the page by `textContent` only.
"""

SCRIPT = r"""
(() => {
  const { all, read, plots } = page;

  // Histograms: one source at a time.
  const show = (source) => {
    for (const plot of plots) {
      const traces = plot.data.filter((trace) => trace.meta && trace.meta.source);
      if (!traces.length) continue;
      const found = traces.find((trace) => trace.meta.source === source);
      Plotly.restyle(plot, { visible: plot.data.map((trace) => trace === found) });
      plot.previousElementSibling.textContent =
        found ? found.meta.summary : "no values of this source";
    }
  };
  for (const choice of all("select.source")) choice.addEventListener("change", () => {
    for (const other of all("select.source")) other.value = choice.value;
    show(choice.value);
  });
  page.drawn.then(() => show("all"));

  // Players: one sounds at a time; a click into a spectrogram goes there.
  const players = all("audio");
  for (const player of players) {
    const picture = player.previousElementSibling, cursor = picture.querySelector("i");
    const follow = () => {
      const share = player.duration ? player.currentTime / player.duration : 0;
      cursor.style.left = 100 * share + "%";
      cursor.style.opacity = player.currentTime > 0 ? 0.9 : 0;
      if (!player.paused) requestAnimationFrame(follow);
    };
    player.addEventListener("play", () => {
      for (const other of players) if (other !== player) other.pause();
      follow();
    });
    for (const kind of ["seeked", "pause", "ended"]) player.addEventListener(kind, follow);
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
  const kinds = all("button[data-kind]");
  for (const button of kinds) button.addEventListener("click", () => {
    const kind = button.dataset.kind;
    for (const other of kinds) other.setAttribute("aria-pressed", other === button);
    for (const row of all(".clips tbody tr")) row.hidden = kind !== "all" && row.dataset.kind !== kind;
  });

  if (kinds.length) kinds[0].click();

  // The browser of what was left out.
  const body = document.querySelector(".browser tbody");
  if (!body) return;
  const columns = ["id", "source", "stage", "outcome", "reason", "detail", "location"];
  const rows = read("left-out").map((cells) => ({ cells, text: cells.join("\n").toLowerCase() }));
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
      (found.length > limit ? ", the first " + limit + " shown" : "");
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
"""
