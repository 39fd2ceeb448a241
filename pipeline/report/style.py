"""Style that only the data report's page has: outcomes, meters, clips to hear, the browser."""

STYLE = """
.card > p.summary { margin: -6px 0 8px; font-variant-numeric: tabular-nums; min-height: 1.4em;
  flex: 1; }
.meter { position: relative; min-width: 84px; }
.meter i { position: absolute; inset: 4px auto 4px 0; background: var(--bar); border-radius: 3px; }
.meter span { position: relative; }
.kept { color: var(--kept); } .rejected { color: var(--rejected); }
.quarantined { color: var(--quarantined); } .pending { color: var(--soft); }
.outcome { font-weight: 600; }
.clips { table-layout: fixed; }
.clips th:first-child { width: 27%; }
.clips td { padding: 14px 16px 14px 0; } .clips td:last-child { padding-right: 0; }
.score { font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.1; }
.score small { font-size: 12px; font-weight: 500; color: var(--soft); }
.facts { color: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.transcript { margin: 6px 0; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; }
.sound { position: relative; background: #000004; border-radius: 6px; overflow: hidden;
  cursor: pointer; height: 128px; }
.sound img { width: 100%; height: 128px; display: block; }
.sound i { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #fff;
  opacity: 0; }
.sound span { position: absolute; left: 4px; color: #fff; background: rgb(0 0 4 / 65%);
  border-radius: 3px; padding: 0 3px; font-size: 10px; pointer-events: none; }
.sound span.top { top: 3px; } .sound span.bottom { bottom: 3px; }
.sound span.right { left: auto; right: 4px; }
audio { display: block; width: 100%; height: 34px; margin-top: 6px; }
.absent { height: 128px; border: 1px dashed var(--line); border-radius: 6px; padding: 12px;
  color: var(--soft); font-size: 12.5px; overflow: auto; }
.browser { table-layout: fixed; }
.browser th:nth-child(1) { width: 22%; } .browser th:nth-child(2) { width: 9%; }
.browser th:nth-child(3) { width: 8%; } .browser th:nth-child(4) { width: 9%; }
.browser th:nth-child(5) { width: 13%; } .browser th:nth-child(7) { width: 21%; }
@media (max-width: 1000px) {
  .clips thead { display: none; }
  .clips tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px 14px;
    border-bottom: 1px solid var(--line); padding: 12px 0; }
  .clips td { padding: 0; border: 0; } .clips td:first-child { grid-column: 1 / -1; }
  .clips td::before { content: attr(data-name); font-size: 12px; color: var(--soft); }
}
@media (max-width: 560px) { .clips tr { grid-template-columns: minmax(0, 1fr); } }
"""
