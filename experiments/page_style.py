"""The style sheet of `results/index.html`: light and dark, phone and desktop."""

STYLE = """\
:root {
  --bg: #f6f7f9; --card: #ffffff; --text: #1c2430; --muted: #5a6675; --line: #d9dee6; --link: #1d5fb8;
  --good: #0f6b3c; --good-bg: #e2f4e9; --bad: #a8261c; --bad-bg: #fce8e6; --odd: #7a5200; --odd-bg: #fdf1d6;
  --quiet: #5a6675; --quiet-bg: #eceff3; --none: #5a6675; --none-bg: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #11151b; --card: #1a2029; --text: #e4e9f0; --muted: #9aa7b7; --line: #323c4a; --link: #84b6f5;
    --good: #7fd6a4; --good-bg: #143324; --bad: #ff9b90; --bad-bg: #42201d; --odd: #efc368; --odd-bg: #3a2e14;
    --quiet: #a6b2c1; --quiet-bg: #28303b; --none: #9aa7b7; --none-bg: #1a2029;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; background: var(--bg); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main { max-width: 80rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }
header p { color: var(--muted); margin: 0; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3rem 0 1rem; padding-bottom: .4rem;
  border-bottom: 2px solid var(--line); }
h3 { font-size: 1.05rem; line-height: 1.35; margin: 0 0 .5rem; }
h2 small, h3 small { color: var(--muted); font-weight: 400; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 2px; }
code { font: .86em/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.card, section.table { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.25rem; margin: 0 0 1.25rem; }
.legend { list-style: none; padding: 0; margin: 0 0 1.25rem; display: grid; gap: .35rem; color: var(--muted);
  font-size: .9rem; }
.tag { display: inline-block; padding: 0 .45em; border-radius: 4px; font-size: .75rem; line-height: 1.55;
  font-weight: 600; white-space: nowrap; }
.tag.reproduced { color: var(--good); background: var(--good-bg); }
.tag.differs { color: var(--bad); background: var(--bad-bg); }
.tag.not-comparable { color: var(--odd); background: var(--odd-bg); }
.tag.quoted { color: var(--quiet); background: var(--quiet-bg); }
.tag.missing { color: var(--none); background: var(--none-bg); box-shadow: inset 0 0 0 1px var(--line); }
.tag.stale { color: var(--bad); box-shadow: inset 0 0 0 1px currentColor; }
.bar { display: flex; gap: 2px; height: 10px; margin: .6rem 0 .8rem; border-radius: 5px; overflow: hidden;
  background: var(--line); }
.bar span { min-width: 3px; flex-basis: 0; }
.bar .reproduced { background: var(--good); }
.bar .differs { background: var(--bad); }
.bar .not-comparable { background: #d69a1f; }
.bar .plain { background: var(--link); }
.bar .quoted { background: #98a4b3; }
.bar .missing { background: var(--line); }
.counts { display: flex; flex-wrap: wrap; gap: .35rem 1.5rem; margin: 0 0 .8rem; }
.counts dt { color: var(--muted); font-size: .8rem; }
.counts dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.links { list-style: none; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  font-size: .92rem; }
.links small { color: var(--muted); font-variant-numeric: tabular-nums; }
.facts { color: var(--muted); font-size: .88rem; margin: 0 0 .8rem; }
.card .facts { font-size: .8rem; margin: 0; }
.scroll { overflow-x: auto; margin: .6rem 0; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
th, td { padding: .45rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { vertical-align: bottom; font-weight: 600; }
thead th[scope=colgroup] { text-align: center; }
thead td { color: var(--muted); font-size: .78rem; white-space: normal; min-width: 8rem; }
thead tr:last-child > * { border-bottom: 2px solid var(--line); }
tbody th { text-align: left; font-weight: 500; white-space: normal; min-width: 11rem; max-width: 18rem;
  position: sticky; left: 0; background: var(--card); z-index: 1; }
th.group { font-weight: 600; color: var(--muted); max-width: none; padding-top: .9rem; position: static; }
tbody tr:last-child > * { border-bottom: 0; }
td.cell { line-height: 1.4; }
td.reproduced { background: var(--good-bg); }
td.differs { background: var(--bad-bg); }
td.not-comparable { background: var(--odd-bg); }
td .tag { padding: 0; background: none; }
td .tag.missing, td .tag.stale { padding: 0 .4em; }
.ours { font-weight: 650; font-size: .95rem; }
.paper, .difference, td small, td.none { color: var(--muted); }
.plain td, .plain th { text-align: left; }
.plain td { white-space: normal; }
.notes { list-style: none; padding: 0; margin: .5rem 0; color: var(--muted); font-size: .86rem; max-width: 70rem; }
.notes li { margin: .25rem 0; overflow-wrap: anywhere; }
sup { font-size: .72em; line-height: 0; margin-left: .2em; color: var(--muted); }
.notes sup { margin: 0; }
details { margin-top: .7rem; }
summary { cursor: pointer; color: var(--link); font-size: .9rem; }
details ul:not(.notes) { padding-left: 1.2rem; font-size: .9rem; }
@media (max-width: 40rem) {
  header, main { padding-left: .75rem; padding-right: .75rem; }
  header { padding-top: 1.5rem; }
  h1 { font-size: 1.4rem; }
  .card, section.table { padding: .9rem .8rem; border-radius: 8px; }
  th, td { padding: .4rem .5rem; }
  tbody th { min-width: 7.5rem; max-width: 9.5rem; }
}
"""
