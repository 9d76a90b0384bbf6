// The page: the stream of events, the address bar, the open trace.

import { $, h, fill, say, plain, time, counted, clock } from './dom.js';
import { chain, ticked, lights } from './chain.js';
import * as sending from './send.js';
import * as list from './list.js';
import { model } from './trace.js';
import { waterfall } from './waterfall.js';
import { headers, derived, story } from './headers.js';

let config = null;
let source = null;
/** The trace in the address bar: its id, what is known of it, and how it is looked at. */
let open = null;
let view = 'time';

// --- the stream

function connect() {
  source?.close();
  source = new EventSource('/demo/events');
  const on = (event, act) => source.addEventListener(event, (message) => act(JSON.parse(message.data)));
  source.addEventListener('open', () => state('live', 'live'));
  source.addEventListener('error', () => {
    state('lost', 'The demo does not answer. If you stopped it, start it again: this page comes back by itself.');
    // A refused stream is not tried again by the browser.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
  on('chain', (data) => {
    const first = !config;
    config = data;
    if (data.hops.length) {
      chain(data);
      sending.target(data.hops[0].address, data.watching_only);
    } else if (first) alone();
    // Shown once it has its place below the chain, whose height nobody knew before.
    $('columns').classList.add('on');
    if (first) route();
  });
  on('passed', lights);
  on('ticked', ticked);
  on('traces', (news) => {
    const newest = list.arrived(news);
    if (!open && newest) history.replaceState(null, '', `#/trace/${newest.id}`), route();
    else if (open && news.some((trace) => trace.id === open.id)) refresh(open);
  });
}

/** `httpserver store`: there is no chain to draw and to send to. */
function alone() {
  document.title = 'httpserver store: traces';
  say(document.querySelector('h1 span'), 'store');
  say(document.querySelector('.top p'), 'Whatever reports here in Zipkin’s format or in OTLP over HTTP is drawn here.');
  for (const id of ['chain', 'send']) $(id).hidden = true;
  document.body.dataset.kind = 'store';
  list.select(null);
  if (!open) draw();
}

function state(kind, text) {
  $('state').dataset.s = kind;
  say($('state'), text);
}

// Browsers open few connections to one server: a page that nobody looks at gives its own back.
document.addEventListener('visibilitychange', () => {
  if (document.hidden) { source?.close(); source = null; } else if (!source) connect();
});

// --- the open trace

function route() {
  const [, id, which] = /^#\/trace\/([0-9a-fA-F]{1,32})(?:\/(headers))?$/.exec(location.hash) ?? [];
  if (!id) {
    if (!open) draw();
    return;
  }
  const now = which === 'headers' ? 'headers' : 'time';
  if (open?.id === id) {
    if (view !== now) { view = now; draw(); }
    return;
  }
  open?.drawing?.done();
  view = now;
  open = { id, trace: null, exchange: null, verdict: null, missing: false, drawing: null, loading: false };
  list.select(id);
  refresh(open);
}

async function refresh(of) {
  if (of.loading) { of.again = true; return; }
  of.loading = true;
  try {
    const [answer, exchange] = await Promise.all([fetch(`/demo/verdict/${of.id}`), of.exchange ? null : fetch(`/demo/exchange/${of.id}`)]);
    const found = answer.ok ? await answer.json() : null;
    if (exchange?.ok) of.exchange = await exchange.json();
    of.missing = !found;
    of.verdict = found;
    of.trace = found && model(found);
  } catch {
    of.failed = true;
  }
  of.loading = false;
  if (of === open) draw();
  if (of.again) { of.again = false; refresh(of); }
}

function draw() {
  for (const which of ['time', 'headers']) {
    const on = view === which;
    $(`tab-${which}`).setAttribute('aria-selected', String(on));
    $(`tab-${which}`).tabIndex = on ? 0 : -1;
    $(`view-${which}`).hidden = !on;
  }
  document.querySelector('.tabs').hidden = !open;
  if (!open) {
    fill($('links'));
    fill($('about'), h('div', { class: 'empty' }, h('p', null, h('strong', null, 'Nothing to see yet.')),
      h('p', null, config && !config.hops.length ? 'Traces are drawn here as soon as spans of them are reported.' : 'Press “Send one”. The request goes through the chain above, every hop reports what it did, and the pieces come together here.')));
    fill($('view-time'));
    fill($('view-headers'));
    return;
  }
  const { trace, exchange } = open;
  about();
  if (view === 'time') {
    if (trace) {
      const kept = open.drawing?.state, focus = $('view-time').contains(document.activeElement) && document.activeElement.getAttribute('role') === 'tree';
      open.drawing?.done();
      open.drawing = waterfall($('view-time'), trace, kept);
      if (focus) $('view-time').querySelector('[role=tree]').focus();
    } else fill($('view-time'), nothing());
  } else fill($('view-headers'), exchange ? headers(exchange) : trace ? derived(trace) : nothing());
}

/** Why there is no timeline. */
function nothing() {
  if (!open.missing) return h('p', { class: 'empty' }, open.failed ? 'The demo does not answer.' : 'Loading.');
  if (open.exchange?.reply?.sampled === false) {
    return h('div', { class: 'empty' }, h('p', null, h('strong', null, 'Not sampled, so there is no timeline.')), h('p', null, 'The caller said that this request is not to be recorded, and every hop passed that on. The headers travelled all the same: see “Headers, hop by hop”.'));
  }
  return h('div', { class: 'empty' }, h('p', null, h('strong', null, 'No spans of this trace are here.')), h('p', null, open.exchange ? 'They are still on their way, or a hop was stopped before it could report.' : 'The store keeps the newest 1,000 traces; this one is gone, was never sent, or was not sampled.'));
}

function about() {
  const { trace, exchange, id } = open;
  const links = [];
  const link = (href, text, more) => links.push(h('a', { href, ...more }, text));
  link(`#/trace/${id}${view === 'headers' ? '/headers' : ''}`, 'Link to this trace');
  if (trace) link(`/api/v2/trace/${id}`, 'Zipkin JSON', { download: `trace-${id}.json` });
  const away = { target: '_blank', rel: 'noopener noreferrer' };
  if (config?.links.zipkin) link(`${config.links.zipkin}/zipkin/traces/${id}`, 'Open in Zipkin', away);
  if (config?.links.jaeger) link(`${config.links.jaeger}/trace/${id}`, 'Open in Jaeger', away);
  fill($('links'), links);
  const { failure, deviations = [], requests = 1 } = open.verdict ?? {};
  const wrong = [failure, ...deviations].filter(Boolean);
  const steps = story(trace, exchange);
  const shut = $('about').querySelector('details')?.open === false;
  fill($('about'),
    h('p', { class: 'facts-line' }, h('span', { class: 'id trace' }, id),
      trace ? [h('strong', null, time(trace.duration)), ` ${counted(trace.services.length, 'service')}, ${counted(trace.rows.length, 'span')}`, h('span', { class: 'hint' }, ` ${clock(trace.start)}`)] : null),
    trace?.begunOutside && h('p', { class: 'wrong calm' }, `The first span hangs below ${trace.rows[0].missing}, the id that the caller sent along. The caller reports no spans here, so the picture begins at ${plain(trace.rows[0].service || 'the first hop', 60)}.`),
    requests > 1 && h('p', { class: 'wrong calm' }, `${requests} requests used this trace id, so their spans are all here.`),
    wrong.length > 0 && h('ul', { class: 'wrong', 'aria-label': 'What is not as it should be' }, wrong.map((text) => h('li', null, plain(text, 600)))),
    steps && h('details', { class: 'told', open: !shut }, h('summary', null, 'What happened to the trace id'), h('p', { class: 'hint' }, 'A trace id is the one number that everything done for one request has in common. It has to be handed from hop to hop.'), h('ol', { class: 'story' }, steps)));
}

// --- the beginning

function tab(which) {
  view = which;
  if (open) history.replaceState(null, '', `#/trace/${open.id}${which === 'headers' ? '/headers' : ''}`);
  draw();
}
for (const which of ['time', 'headers']) {
  $(`tab-${which}`).addEventListener('click', () => tab(which));
  $(`tab-${which}`).addEventListener('keydown', (event) => {
    if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
    event.preventDefault();
    const other = which === 'time' ? 'headers' : 'time';
    tab(other);
    $(`tab-${other}`).focus();
  });
}
sending.start((exchange) => {
  const id = exchange.reply?.trace_id;
  if (id) location.hash = `#/trace/${id.replace(/^0{16}/, '')}${view === 'headers' ? '/headers' : ''}`;
});
addEventListener('hashchange', route);
draw();
connect();
