// Two traces side by side: what both did, on one scale, and what took longer.

import { h, plain, time, counted, clock, colour } from './dom.js';

const SHOWN = 400;

/** Rows of both traces in the order of the trees: the same place, service and kind of work is one row. */
export function paired(a, b) {
  const paths = (trace) => {
    const found = new Map(), seen = new Map(), own = [];
    trace.rows.forEach((row, i) => {
      const base = `${row.parent < 0 ? '' : own[row.parent]}/${row.service}|${row.span.kind ?? ''}|${row.label}`;
      const n = seen.get(base) ?? 0;
      seen.set(base, n + 1);
      own[i] = `${base}#${n}`;
      found.set(own[i], row);
    });
    return found;
  };
  const left = paths(a), right = paths(b);
  const rows = [];
  const others = [...right.keys()].filter((path) => !left.has(path));
  for (const [path, row] of left) {
    rows.push([row, right.get(path) ?? null]);
    // What only the other has stands below the parent that both have.
    for (let i = 0; i < others.length;) {
      if (others[i].slice(0, others[i].lastIndexOf('/')) === path) rows.push([null, right.get(others.splice(i, 1)[0])]);
      else i++;
    }
  }
  return rows.concat(others.map((path) => [null, right.get(path)]));
}

/** Draws the comparison of two traces and their verdicts. */
export function compare(one, two) {
  const whole = Math.max(one.trace.duration, two.trace.duration, 1);
  const rows = paired(one.trace, two.trace);
  const bar = (row, which) => {
    if (!row || row.start == null) return null;
    const el = h('span', { class: `two-bar ${which}${row.error ? ' err' : ''}` });
    el.style.marginLeft = `${Math.min(99, (row.start / whole) * 100)}%`;
    el.style.width = `${Math.max(0.4, Math.min(100, (row.duration / whole) * 100))}%`;
    return el;
  };
  const difference = (a, b) => {
    if (!a) return h('td', { class: 'more-b' }, 'only in B');
    if (!b) return h('td', { class: 'more-a' }, 'only in A');
    const by = b.duration - a.duration;
    const much = Math.abs(by) > 0.1 * Math.max(a.duration, 1) && Math.abs(by) > 1000;
    return h('td', { class: much ? (by > 0 ? 'more-b' : 'more-a') : 'hint' }, by === 0 ? '0' : `${by > 0 ? '+' : '−'}${time(Math.abs(by))}`);
  };
  const side = (name, { id, trace, verdict }) => h('section', { class: 'two-side', 'aria-label': `Trace ${name}` },
    h('h3', null, h('span', { class: `two-name ${name.toLowerCase()}` }, name), ' ', h('a', { href: `#/trace/${id}`, class: 'id trace' }, id)),
    h('p', { class: 'facts-line' }, h('strong', null, time(trace.duration)), `${counted(trace.services.length, 'service')}, ${counted(trace.rows.length, 'span')}${trace.errors ? `, ${counted(trace.errors, 'error')}` : ''}`, h('span', { class: 'hint' }, clock(trace.start))),
    [verdict.failure, ...verdict.deviations].filter(Boolean).map((text) => h('p', { class: 'bad' }, plain(text, 400))));
  return [
    h('div', { class: 'two' }, side('A', one), side('B', two)),
    h('div', { class: 'two-table', tabindex: '0', role: 'region', 'aria-label': 'Spans of both traces' },
      h('table', null,
        h('thead', null, h('tr', null, ['Span', 'A', 'B', 'B against A'].map((name) => h('th', { scope: 'col' }, name)), h('th', { scope: 'col' }, `On one scale, 0 to ${time(whole)}`))),
        h('tbody', null, rows.slice(0, SHOWN).map(([a, b]) => {
          const row = a ?? b;
          const name = h('th', { scope: 'row' }, h('span', { class: 'dot', 'data-c': colour(row.service) }), ` ${plain(row.service || 'unnamed', 40)} `, h('span', { class: 'hint' }, `${row.span.kind === 'CLIENT' ? 'calls ' : ''}${plain(row.label, 60)}`));
          name.style.paddingLeft = `${Math.min(row.depth * 6, 120)}px`;
          const took = (of) => h('td', { class: of?.error ? 'bad' : null }, of ? `${time(of.duration)}${of.error ? ' failed' : ''}` : '–');
          return h('tr', null, name, took(a), took(b), difference(a, b), h('td', { class: 'two-lane' }, h('div', { 'aria-hidden': 'true' }, bar(a, 'a'), bar(b, 'b'))));
        })))),
    rows.length > SHOWN && h('p', { class: 'hint' }, `${rows.length - SHOWN} more rows are not drawn.`)];
}
