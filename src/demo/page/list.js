// The list of traces, newest first, as they come in: filtered, and grouped by request where one became several traces.

import { $, h, fill, say, plain, time, clock, counted, colour } from './dom.js';

const SHOWN = 100;
const traces = new Map();
let current = null;
/** The trace that another one is chosen for, to compare the two. */
let picking = null;
let drawing = false;

/** Takes news of traces; returns the newest. */
export function arrived(news) {
  for (const trace of news) traces.set(trace.id, trace);
  const newest = [...traces.values()].sort((a, b) => b.start_us - a.start_us);
  for (const old of newest.slice(SHOWN)) traces.delete(old.id);
  later();
  return newest[0];
}

/** Marks the open trace. */
export function select(id) {
  current = id;
  later();
}

/** The next trace that is chosen is compared with this one; null ends that. */
export function pick(id) {
  picking = id;
  const notice = $('picking');
  notice.hidden = !id;
  if (id) {
    fill(notice, `Choose the trace to compare with ${id.slice(0, 8)}… `, h('button', { type: 'button', class: 'small', onclick: () => pick(null) }, 'Cancel'));
    notice.scrollIntoView({ block: 'nearest' });
  }
  later();
}

function later() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

/** Whether a trace passes the filter. */
function passes(trace) {
  const service = $('by-service').value, status = $('by-status').value, least = Number($('by-duration').value || 0);
  return (!service || trace.services.includes(service)) && (!status || (status === 'none' ? trace.status == null : String(trace.status ?? '')[0] === status))
    && trace.duration_us >= least * 1000 && (!$('by-errors').checked || trace.errors > 0 || trace.status >= 500);
}

/** Newest first; the traces of one request stand together, where its newest is. */
function ordered() {
  const list = [...traces.values()].filter(passes).sort((a, b) => b.start_us - a.start_us);
  const groups = new Map();
  for (const trace of list) {
    const key = trace.request_id ? `r ${trace.request_id}` : `t ${trace.id}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(trace);
  }
  return [...groups.values()].flatMap((group) => group.map((trace, i) => ({ trace, of: group.length, first: i === 0, last: i === group.length - 1 })));
}

const items = new Map();

function draw() {
  services();
  const list = ordered();
  say($('count'), list.length < traces.size ? `${list.length} of ${traces.size}` : list.length ? `${list.length === SHOWN ? 'the newest ' : ''}${list.length}` : '');
  if (!list.length) {
    items.clear();
    fill($('list'), h('div', { class: 'empty' }, traces.size ? h('p', null, 'No trace passes the filter.') : [h('p', null, h('strong', null, 'No traces yet.')),
      h('p', null, document.body.dataset.kind === 'store' ? `Report spans to ${location.origin}/v1/traces in OTLP over HTTP, or to ${location.origin}/api/v2/spans in Zipkin’s format.` : 'Send a request above, or with curl. Its spans arrive here within a moment.')]));
    return;
  }
  let ol = $('list').querySelector('ol');
  if (!ol) {
    ol = h('ol', { 'aria-label': 'Traces, newest first' });
    fill($('list'), ol);
  }
  const longest = Math.max(...list.map(({ trace }) => trace.duration_us), 1);
  const shown = new Set(list.map(({ trace }) => trace.id));
  for (const [id, item] of items) if (!shown.has(id)) { item.el.remove(); items.delete(id); }
  list.forEach((entry, i) => {
    const { trace } = entry;
    let item = items.get(trace.id);
    const key = JSON.stringify([entry, trace.id === current, picking]);
    if (item?.key !== key) {
      const el = item?.el ?? h('li', null, h('a'));
      el.className = entry.of > 1 ? `grouped${entry.first ? ' first' : ''}${entry.last ? ' last' : ''}` : '';
      // The link stays the same element, so that focus stays on it.
      const link = el.querySelector('a');
      el.querySelector('.group')?.remove();
      if (entry.of > 1 && entry.first) el.prepend(h('p', { class: 'group' }, `One request, ${entry.of} traces`, h('span', { class: 'hint', title: plain(trace.request_id) }, ` ${plain(trace.request_id, 8)}`)));
      row(link, trace);
      item = { el, key, bar: el.querySelector('.long') };
      items.set(trace.id, item);
    }
    item.bar.style.width = `${Math.max(1, (trace.duration_us / longest) * 100)}%`;
    if (ol.children[i] !== item.el) ol.insertBefore(item.el, ol.children[i] ?? null);
  });
}

/** The services of the filter: those that are there. */
function services() {
  const names = [...new Set([...traces.values()].flatMap((trace) => trace.services))].sort((a, b) => a.localeCompare(b, 'en', { numeric: true })).slice(0, 200);
  const select = $('by-service'), chosen = select.value;
  if (select.dataset.names === names.join('\n')) return;
  select.dataset.names = names.join('\n');
  fill(select, h('option', { value: '' }, 'every service'), names.map((name) => h('option', { value: name }, plain(name, 40))));
  select.value = names.includes(chosen) ? chosen : '';
}

function row(link, trace) {
  link.className = trace.errors || trace.status >= 500 ? 'bad' : '';
  link.setAttribute('href', picking && picking !== trace.id ? `#/compare/${picking}/${trace.id}` : `#/trace/${trace.id}`);
  if (trace.id === current) link.setAttribute('aria-current', 'true');
  else link.removeAttribute('aria-current');
  fill(link,
    h('span', { class: 'when' }, clock(trace.start_us)),
    h('span', { class: 'name' }, plain(trace.name ?? 'no name', 60)),
    trace.status != null && h('span', { class: `status${trace.status >= 500 ? ' bad' : trace.status >= 400 ? ' warn' : ''}` }, h('span', { class: 'sr' }, 'status '), String(trace.status)),
    h('span', { class: 'took' }, time(trace.duration_us)),
    h('span', { class: 'dots' }, trace.services.slice(0, 6).map((name) => h('span', { class: 'dot', 'data-c': colour(name) })),
      h('span', null, ` ${counted(trace.services.length, 'service')}, ${counted(trace.spans, 'span')}`),
      trace.errors > 0 && h('strong', { class: 'flag' }, ` ${counted(trace.errors, 'error')}`),
      trace.requests > 1 && h('span', null, `, ${trace.requests} requests`),
      trace.pieces > 1 && h('strong', { class: 'flag warn' }, ' in pieces')),
    h('span', { class: 'track', 'aria-hidden': 'true' }, h('span', { class: 'long' })));
}

for (const id of ['by-service', 'by-status', 'by-duration', 'by-errors']) $(id).addEventListener('input', later);
$('filter').addEventListener('submit', (event) => event.preventDefault());
