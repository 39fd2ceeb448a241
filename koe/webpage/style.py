"""Style that all pages share: colours of both schemes, frame, tiles, cards, tables, controls.

Colours of text keep a contrast of 4.5 : 1 to page and card in either scheme (WCAG 2 AA).
"""

STYLE = """
:root { --page: #f6f7f9; --card: #ffffff; --ink: #1d2128; --soft: #5d6673; --line: #e2e5ea;
  --grid: #e9ecf0; --edge: #868e99; --accent: #3f6a98; --kept: #357a31; --rejected: #8f5d0b;
  --quarantined: #b93534; --lowered: #8a5580; --bar: #dfe7f1; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e6e8ec;
  --soft: #99a1ad; --line: #2d323a; --grid: #2a2f37; --edge: #6d7683; --accent: #7ba3cf;
  --kept: #74c06c; --rejected: #e0a94c; --quarantined: #f08080; --lowered: #cf9fc4;
  --bar: #2b3a4d; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 56px; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans CJK JP", sans-serif; }
.sheet { max-width: 1400px; margin: 0 auto; padding: 20px 24px 48px; }
header { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: baseline; }
header h1 { margin: 0; font-size: 24px; overflow-wrap: anywhere; }
header p { margin: 0; flex-basis: 100%; color: var(--soft); font-size: 13px; }
.badge { font-size: 12px; font-weight: 600; border: 1px solid currentColor; border-radius: 99px;
  padding: 1px 9px; color: var(--soft); white-space: nowrap; }
.badge.good { color: var(--kept); } .badge.bad { color: var(--quarantined); }
nav { position: sticky; top: 0; z-index: 5; display: flex; gap: 4px 18px; flex-wrap: wrap;
  background: var(--page); padding: 10px 0; margin: 8px 0 4px;
  border-bottom: 1px solid var(--line); font-size: 13px; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--accent); text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
section > h2 { margin: 30px 0 2px; font-size: 18px; }
section > h2 + div { margin-top: 10px; }
.lead { margin: 0 0 10px; color: var(--soft); font-size: 13px; max-width: 960px; }
.tiles { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 12px;
  margin: 14px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 10px 14px; }
.tile dt { font-size: 12px; font-weight: 500; color: var(--soft); }
.tile dd { margin: 0; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { font-size: 12px; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 14px; }
.card { padding: 14px 16px; min-width: 0; }
.span2 { grid-column: span 2; } .span3 { grid-column: span 3; } .span6 { grid-column: 1 / -1; }
.tall { grid-row: span 2; }
.charts .card { display: flex; flex-direction: column; }
.tall .plot { flex: 1 0 auto; }
.card h3 { margin: 0; font-size: 15px; }
.card > p { margin: 2px 0 8px; color: var(--soft); font-size: 12.5px; }
[hidden] { display: none !important; }
.none { color: var(--soft); font-style: italic; }
.scroll { max-height: 560px; overflow: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: 600; color: var(--soft); white-space: nowrap; }
.scroll th { position: sticky; top: 0; background: var(--card); z-index: 1; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; } td code { overflow-wrap: anywhere; }
.number + :not(.number) { padding-left: 14px; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: 12px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.controls { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin: 10px 0; }
.controls label { color: var(--soft); font-size: 12px; display: flex; gap: 7px;
  align-items: center; }
select, input[type=search], button { font: 13px system-ui, sans-serif; color: var(--ink);
  background: var(--card); border: 1px solid var(--edge); border-radius: 6px; padding: 5px 9px;
  max-width: 240px; }
::placeholder { color: var(--soft); opacity: 1; }
button { cursor: pointer; } button[aria-pressed=true] { background: var(--accent);
  border-color: var(--accent); color: var(--page); }
@media (max-width: 1000px) {
  .sheet { padding: 16px 14px 40px; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  .scroll table { min-width: 860px; }
  .span2, .span3, .span6 { grid-column: auto; } .tall { grid-row: auto; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media print { .card { break-inside: avoid; } nav, .controls { display: none; } }
"""
