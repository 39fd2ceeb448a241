"""Style of the data report's page."""

STYLE = """
:root { --page: #f6f7f9; --card: #ffffff; --ink: #1d2128; --soft: #626b78; --line: #e2e5ea;
  --grid: #e9ecf0; --accent: #4e79a7; --kept: #3f8a3a; --rejected: #a86f10;
  --quarantined: #c9403f; --bar: #dfe7f1; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e6e8ec;
  --soft: #99a1ad; --line: #2d323a; --grid: #2a2f37; --accent: #7ba3cf; --kept: #74c06c;
  --rejected: #e0a94c; --quarantined: #f08080; --bar: #2b3a4d; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 56px; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans CJK JP", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 20px 24px 48px; }
header { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: baseline; }
header h1 { margin: 0; font-size: 24px; overflow-wrap: anywhere; }
header p { margin: 0; flex-basis: 100%; color: var(--soft); font-size: 13px; }
.badge { font-size: 12px; font-weight: 600; border: 1px solid currentColor; border-radius: 99px;
  padding: 1px 9px; color: var(--soft); white-space: nowrap; }
.badge.good { color: var(--kept); } .badge.bad { color: var(--quarantined); }
nav { position: sticky; top: 0; z-index: 5; display: flex; gap: 4px 18px; flex-wrap: wrap;
  background: var(--page); padding: 10px 0; margin: 8px 0 4px;
  border-bottom: 1px solid var(--line); font-size: 13px; }
nav a { color: var(--soft); text-decoration: none; } nav a:hover { color: var(--accent); }
section > h2 { margin: 30px 0 2px; font-size: 18px; }
.lead { margin: 0 0 10px; color: var(--soft); font-size: 13px; max-width: 960px; }
.tiles { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 12px;
  margin: 14px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 10px 14px; }
.tile h3 { margin: 0; font-size: 12px; font-weight: 500; color: var(--soft); }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { font-size: 12px; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 14px; }
.card { padding: 14px 16px; min-width: 0; }
.span2 { grid-column: span 2; } .span3 { grid-column: span 3; } .span6 { grid-column: 1 / -1; }
.card h3 { margin: 0; font-size: 15px; }
.card > p { margin: 2px 0 8px; color: var(--soft); font-size: 12.5px; }
.card > p.summary { margin: -6px 0 8px; font-variant-numeric: tabular-nums; min-height: 1.4em; }
[hidden] { display: none !important; }
.none { color: var(--soft); font-style: italic; }
.scroll { max-height: 560px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: 600; color: var(--soft); white-space: nowrap; }
.scroll th { position: sticky; top: 0; background: var(--card); z-index: 1; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
.number + :not(.number) { padding-left: 14px; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.meter { position: relative; min-width: 84px; }
.meter i { position: absolute; inset: 4px auto 4px 0; background: var(--bar); border-radius: 3px; }
.meter span { position: relative; }
.wide > table:not(.clips) td:first-child { min-width: 96px; }
code { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.kept { color: var(--kept); } .rejected { color: var(--rejected); }
.quarantined { color: var(--quarantined); } .pending { color: var(--soft); }
.outcome { font-weight: 600; }
.controls { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin: 10px 0; }
.controls label { color: var(--soft); font-size: 12px; display: flex; gap: 7px;
  align-items: center; }
select, input[type=search], button { font: 13px system-ui, sans-serif; color: var(--ink);
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 5px 9px;
  max-width: 240px; }
button { cursor: pointer; } button[aria-pressed=true] { background: var(--accent);
  border-color: var(--accent); color: var(--page); }
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
.sound span { position: absolute; left: 6px; color: #fff; opacity: .9; font-size: 10px;
  pointer-events: none; text-shadow: 0 0 3px #000, 0 0 3px #000; }
.sound span.top { top: 3px; } .sound span.bottom { bottom: 3px; }
.sound span.right { left: auto; right: 6px; }
audio { display: block; width: 100%; height: 34px; margin-top: 6px; }
.absent { height: 128px; border: 1px dashed var(--line); border-radius: 6px; padding: 12px;
  color: var(--soft); font-size: 12.5px; overflow: auto; }
.browser { table-layout: fixed; }
.browser th:nth-child(1) { width: 22%; } .browser th:nth-child(2) { width: 9%; }
.browser th:nth-child(3) { width: 8%; } .browser th:nth-child(4) { width: 9%; }
.browser th:nth-child(5) { width: 13%; } .browser th:nth-child(7) { width: 21%; }
@media (max-width: 1000px) {
  main { padding: 16px 14px 40px; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  .span2, .span3, .span6 { grid-column: auto; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .clips thead { display: none; }
  .clips tr { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px 14px;
    border-bottom: 1px solid var(--line); padding: 12px 0; }
  .clips td { padding: 0; border: 0; } .clips td:first-child { grid-column: 1 / -1; }
  .wide { overflow-x: auto; } .browser, .wide > table:not(.clips) { min-width: 900px; }
}
@media (max-width: 560px) { .clips tr { grid-template-columns: minmax(0, 1fr); } }
@media print { .card { break-inside: avoid; } nav, .controls { display: none; } }
"""
