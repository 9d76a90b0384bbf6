// The timeline: a row per span, to scale. Only the rows in sight are elements, so that thousands of spans stay smooth.

import { h, fill, say, plain, time, counted, colour, clock } from './dom.js';

const SPARE = 6;
/** Pixels that the tree may be indented by at its deepest, and a level by at most. */
const INDENT = 110;
const STEP = 10;
/** Where names stand above their bars. */
const narrow = matchMedia('(max-width: 720px)');

/** Draws a trace into `root`; `kept` is the state of the same trace's earlier drawing (a trace grows while it is open). */
export function waterfall(root, trace, kept) {
  const state = { zoom: null, folded: new Set(), selected: null, top: 0, ...kept };
  let ROW = narrow.matches ? 44 : 28;
  const step = Math.min(STEP, (narrow.matches ? INDENT / 2 : INDENT) / Math.max(1, ...trace.rows.map((row) => row.depth)));
  const whole = Math.max(trace.duration, 1);
  let [from, to] = state.zoom ?? [0, whole];
  let seen = [];
  const drawn = new Map();
  const key = (row) => `${row.span.id} ${row.span.kind ?? ''} ${row.service}`;
  let selected = trace.rows.findIndex((row) => key(row) === state.selected);
  if (selected < 0) selected = 0;

  const scale = h('div', { class: 'scale', title: 'Drag to zoom' });
  const spacer = h('div', { class: 'spacer', role: 'none' });
  const tree = h('div', { class: 'rows', role: 'tree', tabindex: '0', 'aria-label': `Spans of the trace, ${trace.rows.length}` }, spacer);
  const details = h('div', { class: 'details' });
  const button = (text, label, act) => h('button', { type: 'button', class: 'small', title: label, 'aria-label': label, onclick: act }, text);
  const tools = h('div', { class: 'tools', role: 'group', 'aria-label': 'Zoom' },
    button('+', 'Zoom in', () => zoomBy(0.5)), button('−', 'Zoom out', () => zoomBy(2)),
    button('Span', 'Zoom to the chosen span', () => zoomTo(selected)), button('All', 'All: show the whole trace', () => zoom(0, whole)));
  const legend = h('p', { class: 'legend' },
    trace.services.slice(0, 12).map((name) => h('span', null, h('span', { class: 'dot', 'data-c': colour(name) }), plain(name, 40))),
    trace.services.length > 12 && h('span', null, `and ${trace.services.length - 12} more`),
    trace.rows.some((row) => row.span.kind === 'SERVER') && h('span', null, h('span', { class: 'swatch server' }), 'filled: a service at work'),
    trace.rows.some((row) => row.span.kind === 'CLIENT') && h('span', null, h('span', { class: 'swatch client' }), 'pale: a call, as its caller saw it'),
    h('span', null, h('span', { class: 'swatch crit' }), 'critical path: what the request waited for'),
    trace.errors > 0 && h('span', null, h('span', { class: 'swatch err' }), 'failed'));
  const keys = h('p', { class: 'hint keys' }, 'Keys: ↑ ↓ choose, ← → fold and unfold, + − zoom, Enter zoom to the span, 0 all, [ ] move along.');
  const above = h('button', { type: 'button', class: 'beyond', tabindex: '-1', hidden: true, onclick: () => { tree.scrollTop -= tree.clientHeight - ROW; } });
  const below = h('button', { type: 'button', class: 'beyond', tabindex: '-1', hidden: true, onclick: () => { tree.scrollTop += tree.clientHeight - ROW; } });
  const range = h('span', { class: 'hint range' });
  tools.append(range);
  fill(root, legend, h('div', { class: 'head' }, tools, scale), above, tree, below, keys, details);

  function visible() {
    seen = [];
    for (let i = 0; i < trace.rows.length; i++) {
      seen.push(i);
      if (state.folded.has(key(trace.rows[i]))) i += trace.rows[i].size - 1;
    }
    spacer.style.height = `${seen.length * ROW}px`;
    tree.style.setProperty('--rows', seen.length);
    tree.style.setProperty('--row', `${ROW}px`);
  }

  const percent = (us) => ((us - from) / (to - from)) * 100;

  function box(el, start, end) {
    // Off the screen by miles is as good as by inches, and browsers round it better.
    const left = Math.max(-2, Math.min(102, percent(start))), right = Math.max(-2, Math.min(102, percent(end)));
    el.style.left = `${left}%`;
    el.style.width = `${Math.max(0, right - left)}%`;
    return el;
  }

  function make(i) {
    const row = trace.rows[i];
    const folded = state.folded.has(key(row));
    const kind = row.span.kind?.toLowerCase() ?? 'internal';
    const what = `${kind === 'client' ? 'calls ' : ''}${plain(row.label, 80)}`;
    const label = [plain(row.service || 'unnamed', 60), what, kind, row.start == null ? 'without a time' : `${time(row.duration)}, begins at ${time(row.start)}`,
      row.error && 'failed', row.critical.length && 'on the critical path', row.orphan && 'its parent is missing'].filter(Boolean).join(', ');
    const fold = h('span', { class: row.children.length ? 'fold' : 'fold none', onclick: (event) => { if (row.children.length) { event.stopPropagation(); choose(i); toggle(i); } } }, row.children.length ? (folded ? '▸' : '▾') : '');
    const name = h('span', { class: 'name', 'aria-hidden': 'true' }, fold, h('span', { class: 'dot', 'data-c': colour(row.service) }),
      (row.error || row.orphan) && h('span', { class: 'mark', title: row.error ? 'failed' : 'its parent is missing' }, row.error ? '!' : '?'),
      h('b', null, plain(row.service || 'unnamed', 60)), h('span', { class: 'what' }, ` ${what}${kind === 'server' || kind === 'client' ? '' : ` · ${kind}`}`), folded && h('span', { class: 'more' }, ` +${row.size - 1}`));
    name.style.paddingLeft = `${row.depth * step + 4}px`;
    const lane = h('span', { class: 'lane', 'aria-hidden': 'true' });
    if (row.start != null) {
      const end = row.start + row.duration;
      lane.append(box(h('span', { class: `span ${row.span.kind === 'CLIENT' ? 'client' : ''} ${row.error ? 'err' : ''}`, 'data-c': colour(row.service) }), row.start, end));
      for (const [a, b] of row.critical.slice(0, 40)) lane.append(box(h('span', { class: 'crit' }), a, b));
      const took = h('span', { class: 'took' }, time(row.duration));
      // After the bar where there is room, else before it, else inside.
      const right = percent(end), left = percent(row.start);
      if (right < 82) took.style.left = `calc(${Math.max(right, 0)}% + 6px)`;
      else if (left > 18) took.style.right = `calc(${100 - Math.min(left, 100)}% + 6px)`;
      else { took.style.right = `calc(${Math.max(0, 100 - right)}% + 6px)`; took.classList.add('inside'); }
      if (right >= 0 && left <= 100) lane.append(took);
      else lane.append(h('span', { class: `outside ${right < 0 ? 'before' : 'after'}`, title: 'outside of what is shown' }, right < 0 ? `◂ ${time(row.duration)}` : `${time(row.duration)} ▸`));
    }
    return h('div', {
      class: `row ${i === selected ? 'on' : ''}`, id: `span-${i}`, role: 'treeitem', 'aria-level': row.depth + 1,
      'aria-selected': String(i === selected), 'aria-expanded': row.children.length ? String(!folded) : null,
      'aria-setsize': seen.length, onclick: () => choose(i),
    }, h('span', { class: 'sr' }, label), name, lane);
  }

  function draw(again) {
    const height = tree.clientHeight || 400;
    const first = Math.max(0, Math.floor(tree.scrollTop / ROW) - SPARE);
    const last = Math.min(seen.length, Math.ceil((tree.scrollTop + height) / ROW) + SPARE);
    const wanted = new Set();
    for (let n = first; n < last; n++) wanted.add(seen[n]);
    for (const [i, el] of drawn) if (again || !wanted.has(i)) { el.remove(); drawn.delete(i); }
    for (let n = first; n < last; n++) {
      const i = seen[n];
      if (drawn.has(i)) continue;
      const el = make(i);
      el.setAttribute('aria-posinset', n + 1);
      el.style.top = `${n * ROW}px`;
      drawn.set(i, el);
      spacer.append(el);
    }
    const hidden = [Math.floor(tree.scrollTop / ROW + 0.5), seen.length - Math.ceil((tree.scrollTop + height) / ROW - 0.5)];
    for (const [el, count, arrow, where] of [[above, hidden[0], '▴', 'above'], [below, hidden[1], '▾', 'below']]) {
      el.hidden = seen.length * ROW <= height + 4;
      say(el, count > 0 ? `${arrow} ${counted(count, 'more span')} ${where}` : where === 'above' ? 'the first span' : 'the last span');
      el.disabled = count <= 0;
    }
    if (drawn.has(selected)) tree.setAttribute('aria-activedescendant', `span-${selected}`);
    else tree.removeAttribute('aria-activedescendant');
  }

  function ruler() {
    const marks = [];
    const room = scale.clientWidth || 600;
    const rough = (to - from) / Math.max(2, Math.floor(room / 110));
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(1, [1, 2, 5, 10].find((n) => n * unit >= rough) * unit);
    for (let at = Math.ceil(from / step) * step; at <= to && marks.length < 40; at += step) {
      const mark = h('span', { class: 'tick' }, h('span', null, at === 0 ? '0' : tick(at, step)));
      mark.style.left = `${percent(at)}%`;
      if ((to - at) / (to - from) * room < 70) mark.classList.add('last');
      marks.push(mark);
    }
    fill(scale, marks);
  }

  function zoom(a, b) {
    const least = Math.min(whole, 20);
    const length = Math.min(whole, Math.max(least, b - a));
    from = Math.max(0, Math.min(a, whole - length));
    to = from + length;
    state.zoom = from === 0 && to === whole ? null : [from, to];
    ruler();
    draw(true);
    say(range, state.zoom ? `${time(from)} to ${time(to)} of ${time(whole)}` : '');
  }

  function zoomBy(factor) {
    const row = trace.rows[selected];
    // Around the chosen span if it is in sight, else around the middle.
    const middle = row?.start != null ? row.start + row.duration / 2 : -1;
    const centre = middle >= from && middle <= to ? middle : (from + to) / 2;
    const share = (centre - from) / (to - from);
    const length = (to - from) * factor;
    zoom(centre - share * length, centre + (1 - share) * length);
  }

  function zoomTo(i) {
    const row = trace.rows[i];
    if (row?.start != null) zoom(row.start - row.duration * 0.1, row.start + row.duration * 1.1);
  }

  function choose(i) {
    selected = i;
    state.selected = key(trace.rows[i]);
    const n = seen.indexOf(i);
    const top = n * ROW;
    if (n >= 0 && top < tree.scrollTop) tree.scrollTop = top;
    else if (n >= 0 && top + ROW > tree.scrollTop + tree.clientHeight) tree.scrollTop = top + ROW - tree.clientHeight;
    draw(true);
    attributes(details, trace, trace.rows[i]);
  }

  function toggle(i, fold) {
    const name = key(trace.rows[i]);
    const is = state.folded.has(name);
    if (fold === is) return;
    if (is) state.folded.delete(name); else state.folded.add(name);
    visible();
    draw(true);
  }

  tree.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const n = seen.indexOf(selected), row = trace.rows[selected];
    const page = Math.max(1, Math.floor(tree.clientHeight / ROW) - 1);
    const go = (to) => choose(seen[Math.max(0, Math.min(seen.length - 1, to))]);
    const act = {
      ArrowDown: () => go(n + 1), ArrowUp: () => go(n - 1), PageDown: () => go(n + page), PageUp: () => go(n - page), Home: () => go(0), End: () => go(seen.length - 1),
      ArrowLeft: () => (row.children.length && !state.folded.has(key(row)) ? toggle(selected, true) : row.parent >= 0 && choose(row.parent)),
      ArrowRight: () => (state.folded.has(key(row)) ? toggle(selected, false) : row.children.length && choose(row.children[0])),
      '+': () => zoomBy(0.5), '=': () => zoomBy(0.5), '-': () => zoomBy(2), 0: () => zoom(0, whole), Enter: () => zoomTo(selected),
      '[': () => zoom(from - (to - from) / 4, to - (to - from) / 4), ']': () => zoom(from + (to - from) / 4, to + (to - from) / 4),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  let waiting = false;
  tree.addEventListener('scroll', () => {
    state.top = tree.scrollTop;
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(false); });
  });

  // A stretch of the scale is zoomed into.
  scale.addEventListener('pointerdown', (event) => {
    if (event.button !== 0) return;
    const edge = scale.getBoundingClientRect();
    const at = (e) => Math.max(0, Math.min(1, (e.clientX - edge.left) / edge.width));
    const begin = at(event);
    const mark = h('span', { class: 'drag' });
    scale.append(mark);
    scale.setPointerCapture(event.pointerId);
    const move = (e) => {
      const [a, b] = [begin, at(e)].sort((x, y) => x - y);
      mark.style.left = `${a * 100}%`;
      mark.style.width = `${(b - a) * 100}%`;
    };
    const end = (e) => {
      scale.removeEventListener('pointermove', move);
      mark.remove();
      const [a, b] = [begin, at(e)].sort((x, y) => x - y);
      if (e.type === 'pointerup' && b - a > 0.01) zoom(from + a * (to - from), from + b * (to - from));
    };
    scale.addEventListener('pointermove', move);
    scale.addEventListener('pointerup', end, { once: true });
    scale.addEventListener('pointercancel', end, { once: true });
  });

  const resized = new ResizeObserver(() => {
    ROW = narrow.matches ? 44 : 28;
    visible();
    ruler();
    draw(true);
  });
  resized.observe(tree);

  visible();
  ruler();
  tree.scrollTop = state.top;
  draw(true);
  attributes(details, trace, trace.rows[selected]);
  return { state, done: () => resized.disconnect() };
}

function tick(us, step) {
  if (us >= 1e6) return `${+(us / 1e6).toFixed(step < 1e4 ? 3 : step < 1e5 ? 2 : 1)} s`;
  if (us >= 1000) return `${+(us / 1000).toFixed(step < 10 ? 3 : step < 100 ? 2 : step < 1000 ? 1 : 0)} ms`;
  return `${Math.round(us)} µs`;
}

/** Everything that a span says about itself. */
function attributes(el, trace, row) {
  if (!row) return fill(el);
  const s = row.span;
  const end = (e) => e && [e.serviceName, [e.ipv4 ?? (e.ipv6 && `[${e.ipv6}]`), e.port].filter(Boolean).join(':')].filter(Boolean).join(' at ');
  const parent = row.parent >= 0 ? trace.rows[row.parent] : null;
  const facts = [
    ['name', s.name && s.name !== row.label ? s.name : null],
    ['span id', s.id],
    ['parent id', s.parentId ? `${s.parentId}${row.missing ? ' (not in this trace)' : parent ? ` (${parent.service} ${parent.span.kind?.toLowerCase() ?? ''})` : ''}` : 'none: the trace began here'],
    ['began', row.start == null ? 'it does not say' : `${time(row.start)} after the trace, at ${clock(s.timestamp)}`],
    ['took', s.duration == null ? 'it does not say' : time(s.duration)],
    ['waited for', row.critical.length ? `${time(row.critical.reduce((sum, [a, b]) => sum + b - a, 0))} of it on the critical path` : 'no: others took longer'],
    ['status', row.error ? ['failed', s.tags?.error].filter(Boolean).join(': ') : s.tags?.['otel.status_code'] === 'OK' ? 'ok, says its reporter' : null],
    ['reported by', end(s.localEndpoint)], ['other end', end(s.remoteEndpoint)],
  ].filter(([, value]) => value);
  const tags = Object.entries(s.tags ?? {});
  const events = (s.annotations ?? []).map((a) => [time(a.timestamp - trace.start), a.value]);
  const links = (s.links ?? []).slice(0, 100).map((link) => h('li', null, h('a', { href: `#/trace/${link.traceId}` }, `span ${link.spanId} of trace ${link.traceId}`),
    Object.entries(link.tags ?? {}).map(([name, value]) => h('span', { class: 'hint' }, ` ${plain(name, 80)}: ${plain(value, 300)}`))));
  const table = (list) => h('dl', { class: 'facts' }, list.map(([name, value]) => h('div', null, h('dt', null, plain(name, 80)), h('dd', null, plain(value, 2000)))));
  const folded = el.querySelector('details')?.open === false;
  fill(el, h('h3', null, h('span', { class: 'dot', 'data-c': colour(row.service) }), ` ${plain(row.service || 'unnamed', 60)}: ${plain(row.label, 120)}`, row.error && h('strong', { class: 'flag' }, ' failed')),
    h('p', { class: 'hint' }, explain(s)),
    h('details', { open: !folded }, h('summary', null, `What the span says: ${counted(facts.length + tags.length + events.length + links.length, 'entry', 'entries')}`),
      table(facts), tags.length > 0 && table(tags), events.length > 0 && table(events),
      links.length > 0 && [h('h4', null, 'Links to other spans'), h('ul', { class: 'span-links' }, links)]));
}

function explain(s) {
  switch (s.kind) {
    case 'SERVER': return 'A server span: from the arrival of the request at this service until its answer was written.';
    case 'CLIENT': return 'A client span: this service waiting for the one below it, the network included.';
    case 'PRODUCER': return 'A producer span: a message was put on a queue.';
    case 'CONSUMER': return 'A consumer span: a message was taken from a queue.';
    default: return 'Work inside the service.';
  }
}
