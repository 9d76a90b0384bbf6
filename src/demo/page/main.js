// The page: the stream of events, the address bar, the open trace.

import { $, h, fill, say, plain, time, counted, clock } from './dom.js';
import { chain, ticked, lights, seams } from './chain.js';
import * as sending from './send.js';
import * as list from './list.js';
import { model } from './trace.js';
import { waterfall } from './waterfall.js';
import { headers, derived, story } from './headers.js';
import { answer } from './answer.js';
import { compare } from './compare.js';

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
    state('lost', `The ${server()} does not answer. If you stopped it, start it again: this page comes back by itself.`);
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
    if (!open && newest) history.replaceState(null, '', address(newest.id)), route();
    else if (open && news.some((trace) => trace.id === open.id || trace.id === open.other)) refresh(open);
  });
}

/** What serves this page. */
const server = () => document.body.dataset.kind ?? 'demo';

/** `httpserver store`: there is no chain to draw and to send to. */
function alone() {
  say(document.querySelector('.top p'), 'Whatever reports here in Zipkin’s format or in OTLP over HTTP is drawn here.');
  for (const id of ['chain', 'send']) $(id).hidden = true;
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

const VIEWS = ['time', 'headers', 'answer'];

/** The address of a trace, or of one of several requests that used its id. */
const address = (id, request, view) => `#/trace/${id}${request ? `@${request}` : ''}${view && view !== 'time' ? `/${view}` : ''}`;

function route() {
  const [, first, second] = /^#\/compare\/([0-9a-fA-F]{1,32})\/([0-9a-fA-F]{1,32})$/.exec(location.hash) ?? [];
  if (first) return beside(first, second);
  const [, id, request, which] = /^#\/trace\/([0-9a-fA-F]{1,32})(?:@([0-9a-f]{16}))?(?:\/(headers|answer))?$/.exec(location.hash) ?? [];
  if (!id) {
    if (!open) draw();
    return;
  }
  const now = which ?? 'time';
  if (open?.id === id && open.request === (request ?? null) && !open.other) {
    if (view !== now) { view = now; draw(); }
    return;
  }
  open?.drawing?.done();
  view = now;
  stale('');
  open = { id, request: request ?? null, trace: null, exchange: null, verdict: null, missing: false, drawing: null, loading: false };
  list.select(id);
  list.pick(null);
  refresh(open);
}

/** Opens two traces side by side. */
function beside(id, other) {
  open?.drawing?.done();
  stale('');
  open = { id, other, request: null, trace: null, exchange: null, verdict: null, missing: false, drawing: null, loading: false };
  list.select(id);
  list.pick(null);
  refresh(open);
}

async function get(path) {
  const answer = await fetch(path);
  return answer.ok ? answer.json() : null;
}

async function refresh(of) {
  if (of.loading) { of.again = true; return; }
  of.loading = true;
  const which = of.request ? `?request=${of.request}` : '';
  try {
    const [found, exchange, second] = await Promise.all([get(`/demo/verdict/${of.id}${which}`), of.exchange ?? get(`/demo/exchange/${of.id}${which}`), of.other ? get(`/demo/verdict/${of.other}`) : null]);
    of.exchange = exchange;
    of.missing = !found;
    of.verdict = found;
    of.trace = found && model(found);
    of.second = second && { id: of.other, trace: model(second), verdict: second };
  } catch {
    of.failed = true;
  }
  of.loading = false;
  if (of === open) draw();
  if (of.again) { of.again = false; refresh(of); }
}

function draw() {
  const comparing = Boolean(open?.other);
  for (const which of VIEWS) {
    const on = view === which && !comparing;
    $(`tab-${which}`).setAttribute('aria-selected', String(on));
    $(`tab-${which}`).tabIndex = on ? 0 : -1;
    $(`view-${which}`).hidden = !on;
  }
  $('view-compare').hidden = !comparing;
  say($('trace-title'), comparing ? 'Two traces' : 'The trace');
  document.querySelector('.tabs').hidden = !open || comparing;
  if (!open) {
    fill($('links'));
    fill($('about'), h('div', { class: 'empty' }, h('p', null, h('strong', null, 'Nothing to see yet.')),
      h('p', null, config && !config.hops.length ? 'Traces are drawn here as soon as spans of them are reported.' : 'Press “Send one”. The request goes through the chain above, every hop reports what it did, and the pieces come together here.')));
    for (const which of VIEWS) fill($(`view-${which}`));
    return;
  }
  const { trace, exchange } = open;
  if (comparing) {
    seams([], null);
    fill($('links'), h('a', { href: address(open.id) }, 'Back to the trace'));
    fill($('about'));
    const gone = [[open.id, trace], [open.other, open.second]].filter(([, there]) => !there).map(([id]) => id);
    fill($('view-compare'), trace && open.second ? compare({ id: open.id, trace, verdict: open.verdict }, open.second)
      : h('p', { class: 'empty' }, open.missing || open.second === null ? `No spans of ${gone.join(' and ')} are here.` : 'Loading.'));
    return;
  }
  about();
  seams(exchange?.seams ?? [], open.verdict);
  if (view === 'time') {
    if (trace) {
      const kept = open.drawing?.state, focus = $('view-time').contains(document.activeElement) && document.activeElement.getAttribute('role') === 'tree';
      open.drawing?.done();
      open.drawing = waterfall($('view-time'), trace, kept);
      if (focus) $('view-time').querySelector('[role=tree]').focus();
    } else fill($('view-time'), nothing());
  } else if (view === 'headers') fill($('view-headers'), exchange ? headers(exchange) : trace ? derived(trace) : nothing());
  else fill($('view-answer'), exchange ? answer(exchange) : open.missing ? nothing() : h('p', { class: 'empty' }, document.body.dataset.kind === 'store' ? 'The store sees spans, and no answers.' : 'Nobody kept the answer of this request: it did not pass this chain, or 500 newer ones did.'));
}

/** Says that what is shown is not of the last request; the empty text takes that back. */
function stale(text) {
  $('stale').hidden = !text;
  say($('stale'), text);
  $('trace').classList.toggle('stale', Boolean(text));
}

/** Why there is no timeline. */
function nothing() {
  if (!open.missing) return h('p', { class: 'empty' }, open.failed ? `The ${server()} does not answer.` : 'Loading.');
  if (open.exchange?.reply?.sampled === false) {
    return h('div', { class: 'empty' }, h('p', null, h('strong', null, 'Not sampled, so there is no timeline.')), h('p', null, 'The caller said that this request is not to be recorded, and every hop passed that on. The headers travelled all the same: see “Headers, hop by hop”.'));
  }
  return h('div', { class: 'empty' }, h('p', null, h('strong', null, 'No spans of this trace are here.')), h('p', null, open.exchange ? 'They are still on their way, or a hop was stopped before it could report.' : 'The store keeps the newest 1,000 traces; this one is gone, was never sent, or was not sampled.'));
}

function about() {
  const { trace, exchange, id, request } = open;
  const links = [];
  const link = (href, text, more) => links.push(h('a', { href, ...more }, text));
  link(address(id, request, view), 'Link to this trace');
  if (trace) links.push(h('button', { type: 'button', class: 'as-link', onclick: () => list.pick(id) }, 'Compare'));
  if (trace) link(`/api/v2/trace/${id}`, 'Zipkin JSON', { download: `trace-${id}.json` });
  const away = { target: '_blank', rel: 'noopener noreferrer' };
  if (config?.links.zipkin) link(`${config.links.zipkin}/zipkin/traces/${id}`, 'Open in Zipkin', away);
  if (config?.links.jaeger) link(`${config.links.jaeger}/trace/${id}`, 'Open in Jaeger', away);
  fill($('links'), links);
  const { failure, deviations = [], notes = [], used_by: usedBy = [] } = open.verdict ?? {};
  // Where the trace broke comes with the spans' verdict; of a request without spans the headers alone tell.
  const lost = (exchange?.seams ?? []).filter((seam) => !deviations.includes(seam.text)).map((seam) => seam.text);
  const wrong = [failure, ...deviations, ...lost.slice(0, 5), lost.length > 5 && `And so at ${lost.length - 5} more calls.`].filter(Boolean);
  const steps = story(trace, exchange);
  const shut = $('about').querySelector('details')?.open === false;
  const choice = (span, text) => h('a', { href: address(id, span, view), 'aria-current': span === request ? 'true' : null }, text);
  fill($('about'),
    h('p', { class: 'facts-line' }, h('span', { class: 'id trace' }, id),
      trace ? [h('strong', null, time(trace.duration)), ` ${counted(trace.services.length, 'service')}, ${counted(trace.rows.length, 'span')}`, h('span', { class: 'hint' }, ` ${clock(trace.start)}`)] : null),
    usedBy.length > 1 && h('nav', { class: 'used-by', 'aria-label': 'Requests that used this trace id' }, h('strong', null, `${usedBy.length} requests used this id.`), ' Show ',
      usedBy.map((one) => choice(one.span, `${clock(one.start_us)}${one.status ? ` · ${one.status}` : ''} · ${time(one.duration_us)}`)), choice(null, 'all')),
    notes.filter((text) => !/requests used this trace id/.test(text)).map((text) => h('p', { class: 'wrong calm' }, plain(text, 600))),
    wrong.length > 0 && h('ul', { class: 'wrong', 'aria-label': 'What is not as it should be' }, wrong.map((text) => h('li', null, plain(text, 600)))),
    steps && h('details', { class: 'told', open: !shut }, h('summary', null, 'What happened to the trace id'), h('p', { class: 'hint' }, 'A trace id is the one number that everything done for one request has in common. It has to be handed from hop to hop.'), h('ol', { class: 'story' }, steps)));
}

// --- the beginning

function tab(which) {
  view = which;
  if (open) history.replaceState(null, '', address(open.id, open.request, which));
  draw();
}
VIEWS.forEach((which, at) => {
  $(`tab-${which}`).addEventListener('click', () => tab(which));
  $(`tab-${which}`).addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const other = VIEWS[(at + by + VIEWS.length) % VIEWS.length];
    tab(other);
    $(`tab-${other}`).focus();
  });
});
sending.start((exchange) => {
  const id = exchange.reply?.trace_id ?? exchange.trace_id;
  if (id) location.hash = address(id.replace(/^0{16}/, ''), null, view);
}, (why) => { if (open) stale(`The last request failed: ${why} What is shown here is of an earlier one.`); });
addEventListener('hashchange', route);
draw();
connect();
