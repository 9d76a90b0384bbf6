// The list of traces, newest first, as they come in.

import { $, h, fill, say, plain, time, clock, counted, colour } from './dom.js';

const SHOWN = 100;
const traces = new Map();
let current = null;
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

function later() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

const items = new Map();

function draw() {
  const list = [...traces.values()].sort((a, b) => b.start_us - a.start_us);
  say($('count'), list.length ? `${list.length === SHOWN ? 'the newest ' : ''}${list.length}` : '');
  if (!list.length) {
    fill($('list'), h('div', { class: 'empty' }, h('p', null, h('strong', null, 'No traces yet.')),
      h('p', null, document.body.dataset.kind === 'store' ? `Report spans to ${location.origin}/v1/traces in OTLP over HTTP, or to ${location.origin}/api/v2/spans in Zipkin’s format.` : 'Send a request above, or with curl. Its spans arrive here within a moment.')));
    return;
  }
  let ol = $('list').querySelector('ol');
  if (!ol) {
    ol = h('ol', { 'aria-label': 'Traces, newest first' });
    fill($('list'), ol);
  }
  const longest = Math.max(...list.map((trace) => trace.duration_us), 1);
  for (const [id, item] of items) if (!traces.has(id)) { item.el.remove(); items.delete(id); }
  list.forEach((trace, i) => {
    let item = items.get(trace.id);
    const key = JSON.stringify([trace, trace.id === current]);
    if (item?.key !== key) {
      const el = item?.el ?? h('li');
      const inside = row(trace);
      // The link stays the same element, so that focus stays on it.
      const link = el.firstChild;
      if (link) { link.className = inside.className; link.replaceChildren(...inside.childNodes); } else el.append(inside);
      mark(el.firstChild, trace.id === current);
      item = { el, key, bar: el.querySelector('.long') };
      items.set(trace.id, item);
    }
    item.bar.style.width = `${Math.max(1, (trace.duration_us / longest) * 100)}%`;
    if (ol.children[i] !== item.el) ol.insertBefore(item.el, ol.children[i] ?? null);
  });
}

function mark(link, on) {
  if (on) link.setAttribute('aria-current', 'true');
  else link.removeAttribute('aria-current');
}

function row(trace) {
  const odd = trace.requests < 2 && (trace.orphans > 1 || trace.roots > 1);
  return h('a', { href: `#/trace/${trace.id}`, class: trace.errors ? 'bad' : '' },
    h('span', { class: 'when' }, clock(trace.start_us)),
    h('span', { class: 'name' }, plain(trace.name ?? 'no name', 60)),
    h('span', { class: 'took' }, time(trace.duration_us)),
    h('span', { class: 'dots' }, trace.services.slice(0, 6).map((name) => h('span', { class: 'dot', 'data-c': colour(name) })),
      h('span', null, ` ${counted(trace.services.length, 'service')}, ${counted(trace.spans, 'span')}`),
      trace.errors > 0 && h('strong', { class: 'flag' }, ` ${counted(trace.errors, 'error')}`),
      trace.requests > 1 && h('span', null, `, ${trace.requests} requests`),
      odd && h('strong', { class: 'flag warn' }, ' in pieces')),
    h('span', { class: 'track', 'aria-hidden': 'true' }, h('span', { class: 'long' })));
}
