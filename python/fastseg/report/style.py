# SPDX-License-Identifier: BSD-3-Clause
"""How the page of a run looks: on light ground and on dark, on a narrow screen and on paper."""

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c2128; --quiet: #667; --line: #d5d9de; --alarm: #fff3df;
  --c0: #2563a8; --c1: #c2570c; --c2: #1a8a45; --c3: #8b46c1; --c4: #b3304f; --c5: #5f6b76; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e4e7ea; --quiet: #9aa4ae; --line: #363d45;
  --alarm: #3a2e17; --c0: #6fb1f2; --c1: #f5994e; --c2: #58c983; --c3: #c595ef; --c4: #ef7f97; --c5: #a9b4be; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 980px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; margin: 0 0 .6em; }
h2 { font-size: 1.15em; margin: 1.8em 0 .6em; } h3 { font-size: 1em; margin: 1.2em 0 .5em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1.2em; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
.notes { background: var(--alarm); padding: .6em 1em .6em 2em; border-radius: 4px; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25em .9em .25em 0; text-align: left; font-weight: normal; }
td { text-align: right; } th { color: var(--quiet); vertical-align: bottom; }
.row, .charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 1em; }
figure { margin: 0; break-inside: avoid; } figcaption { font-size: .87em; overflow-wrap: anywhere; }
figure img { max-width: 100%; } .sample svg, .chart svg { width: 100%; height: auto; display: block; }
.sample image { image-rendering: pixelated; }
.note, small { color: var(--quiet); } .prediction { color: #e07b00; } .truth { color: #1aa34a; }
svg text { fill: var(--quiet); font-size: 11px; } svg text.mark { fill: var(--text); }
.grid { stroke: var(--line); stroke-width: .5; } .axis { stroke: var(--quiet); }
.chosen { stroke: var(--text); stroke-dasharray: 4 3; } .level { stroke: var(--c2); stroke-dasharray: 6 3; }
polyline { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; }
polyline.raw { stroke-width: 1; opacity: .35; } circle { fill: var(--c); }
.key::before { content: ""; display: inline-block; width: 1.1em; height: .2em; margin: 0 .35em .25em .5em;
  background: var(--c); }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
pre { overflow-x: auto; font-size: .87em; } summary { cursor: pointer; margin-top: 2em; }
"""
