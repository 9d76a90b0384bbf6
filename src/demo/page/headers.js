// The headers hop by hop, and the story that they tell: how the trace id came from the first hop to the last.

import { h, plain, colour } from './dom.js';

const ORDER = ['traceparent', 'tracestate', 'b3', 'x-b3-traceid', 'x-b3-spanid', 'x-b3-parentspanid', 'x-b3-sampled', 'x-b3-flags', 'baggage', 'x-lane', 'x-request-id'];
const MAX_HOPS = 60;

/** Every id of an exchange and who made it: `trace`, or the service, and whether it is the id of a call. */
function makers(exchange) {
  const ids = new Map();
  const learn = (id, what) => { if (id && !ids.has(id)) ids.set(id, what); };
  const walk = (reply) => {
    learn(reply.trace_id, { trace: true });
    // 64-bit ids come padded in the reply, and short in B3.
    if (reply.trace_id?.startsWith('0000000000000000')) learn(reply.trace_id.slice(16), { trace: true });
    learn(reply.span_id, { service: reply.service, call: false });
    for (const call of reply.upstreams) {
      for (const id of spanIds(call.sent)) learn(id, { service: reply.service, call: true });
      if (call.reply) walk(call.reply);
    }
  };
  const sent = sentHeaders(exchange);
  const root = exchange.reply;
  for (const id of traceIds(sent)) learn(id, { trace: true });
  for (const id of [...spanIds(sent), root?.parent_span_id]) learn(id, { service: 'you', call: true });
  if (root) walk(root);
  return ids;
}

/** What the caller sent: as the demo sent it, or as it arrived from somebody else. */
const sentHeaders = (exchange) => (exchange.sender === 'other' ? exchange.received : group(exchange.sent));

/** How sentences name the caller. */
const NAMES = { page: 'you', demo: 'the demo', other: 'the caller' };
const Caller = (name) => ({ you: 'You', 'the demo': 'The demo' }[name] ?? 'The caller');

function group(list) {
  const headers = {};
  for (const [name, value] of list) (headers[name] ??= []).push(value);
  return headers;
}

/** The ids in each traceparent and b3 of the exchange that is drawn, as a hop reads them. */
let contexts = {};
const context = (headers, name) => contexts[headers?.[name]?.[0]];
const traceIds = (headers) => [context(headers, 'traceparent')?.trace_id, context(headers, 'b3')?.trace_id, headers?.['x-b3-traceid']?.[0]].filter(Boolean);
const spanIds = (headers) => [context(headers, 'traceparent')?.span_id, context(headers, 'b3')?.span_id, headers?.['x-b3-spanid']?.[0]].filter(Boolean);

/** The calls of a request, each with the one before it. */
function calls(exchange) {
  const list = [];
  const root = exchange.reply;
  list.push({ from: NAMES[exchange.sender], to: root?.service ?? exchange.service, headers: root?.received ?? sentHeaders(exchange), reply: root, error: exchange.error, status: exchange.status, path: exchange.url, before: null });
  const stack = [list[0]];
  while (stack.length) {
    const call = stack.shift();
    if (!call.reply) continue;
    const below = call.reply.upstreams.map((up) => ({
      from: call.reply.service, to: up.reply?.service ?? lastPart(up.url), headers: up.reply?.received ?? up.sent, reply: up.reply, error: up.error, status: up.status, before: call,
    }));
    list.splice(list.indexOf(call) + 1, 0, ...below);
    stack.push(...below);
  }
  return list;
}

const lastPart = (url) => plain(url.split('/').pop() || url, 40);

/** An id as a pill in its maker's colour. All pills of one id answer when one is pointed at. */
function pill(id, ids) {
  const what = ids.get(id);
  const title = !what ? 'an id' : what.trace ? 'the trace id: the same at every hop' : what.service === 'you' ? 'the span id that the caller made up' : what.call ? `the id of a call that ${what.service} makes` : `the id of ${what.service}'s own span`;
  const kind = !what ? 'none' : what.trace ? 'trace' : what.call ? 'call' : 'own';
  return h('span', { class: `id ${kind}`, 'data-c': what?.service && what.service !== 'you' ? colour(what.service) : null, 'data-id': id, title: plain(title) }, id);
}

/** A text with the known ids in it as pills. */
function marked(text, ids) {
  const shown = plain(text, 600);
  return shown.split(/([0-9a-fA-F]{32}|[0-9a-fA-F]{16})/).map((piece) => (ids.has(piece.toLowerCase()) ? pill(piece.toLowerCase(), ids) : piece));
}

const same = (a, b) => a.length === b.length && a.every((value, i) => value === b[i]);

/** What became of a header between what a hop received and what it sent on. */
function change(name, call) {
  const now = call.headers[name] ?? [];
  if (!call.before) return now.length ? 'sent' : 'absent';
  const then = call.before.headers[name] ?? [];
  if (!then.length) return now.length ? 'added' : 'absent';
  if (!now.length) return 'lost';
  return same(then, now) ? 'kept' : 'changed';
}

/** One plain sentence for what a hop did to a header. */
function sentence(name, what, call) {
  const { from, to, before } = call;
  const trace = (headers) => context(headers, name)?.trace_id;
  // Who makes spans has to write the id of its call.
  const isStale = before?.reply && before.reply.propagation !== 'forward';
  const untouched = isStale ? `${from} passed it on untouched, without the id of its own call: ${to} hangs below the wrong span.` : `${from} passed it on untouched: it adds no span of its own.`;
  if (what === 'absent') return '';
  if (what === 'sent') {
    const You = Caller(from), your = from === 'you' ? 'your' : 'its';
    if (name === 'traceparent' || name === 'b3') return `${You} sent it: a trace id, and the id of ${your} own span.`;
    if (name === 'x-b3-sampled') return call.headers[name][0] === '0' ? `${You} said: do not record this one.` : `${You} said: record this one.`;
    return `${You} sent it.`;
  }
  const began = before.reply && !traceIds(before.headers).length;
  const others = what === 'lost' && traceIds(call.headers).length > 0;
  switch (name) {
    case 'traceparent': case 'b3':
      if (what === 'kept') return untouched;
      if (what === 'added') return began ? `${from} began the trace and tells ${to} its id, and the id of this call.` : `${from} says here too what it read from another header.`;
      if (what === 'lost') return others ? `${from} did not pass it on, but the headers beside it still name the trace.` : `${from} did not pass it on: ${to} cannot know which trace this is, and begins another.`;
      return trace(before.headers) === trace(call.headers) ? `Same trace id. ${from} put the id of its own call in, so that ${to} hangs below it.` : `${from} wrote another trace id: here the picture breaks in two.`;
    case 'x-b3-traceid':
      return { kept: `${from} kept the trace id.`, added: began ? `${from} made the trace id.` : `${from} says the trace id in B3 too.`, changed: `${from} wrote another trace id: here the picture breaks in two.`, lost: others ? `${from} did not pass it on, but the headers beside it still name the trace.` : `${from} lost the trace id: ${to} begins another trace.` }[what];
    case 'x-b3-spanid':
      return { kept: untouched, added: `The id of ${from}'s call. ${to} makes it the parent of its own span.`, changed: `Now the id of ${from}'s call: ${to} makes it the parent of its own span.`, lost: `${from} lost it: nobody can tell whose call this was.` }[what];
    case 'x-b3-parentspanid':
      return { kept: `${from} passed it on untouched.`, added: `${from}'s own span, the one that makes this call.`, changed: `Now ${from}'s own span, the one that makes this call.`, lost: `${from} lost it.` }[what];
    case 'x-b3-sampled': case 'x-b3-flags': {
      const yes = call.headers[name]?.[0] !== '0';
      return { kept: yes ? 'Every hop records its spans.' : 'No hop records spans: there will be no timeline.', added: yes ? `${from} decided that this trace is recorded.` : `${from} decided that this trace is not recorded.`, changed: `${from} decided anew.`, lost: `${from} lost the decision: ${to} has to make its own.` }[what];
    }
    case 'x-request-id':
      return { kept: `${from} passed the request's id on: it ties the log lines of all hops together.`, added: `Nobody had given the request an id, so ${from} made one.`, changed: `${from} made another: what arrived could not be used.`, lost: `${from} lost it: log lines of the hops below cannot be found by it.` }[what];
    case 'baggage':
      return { kept: `${from} carried it along: every hop can read what you put in.`, lost: `${from} lost it: the hops below cannot read it.` }[what] ?? `${from} wrote it.`;
    case 'x-lane':
      return { kept: `${from} carried the lane along, so that routing below can follow it.`, lost: `${from} lost the lane: from here on the request takes the base lane.` }[what] ?? `${from} wrote it.`;
    default:
      return { kept: `${from} carried it along.`, added: `${from} wrote it.`, changed: `${from} wrote another.`, lost: `${from} lost it.` }[what];
  }
}

const WORDS = { kept: 'kept', changed: 'changed', added: 'added', lost: 'lost', sent: 'sent' };

/** The headers side by side. */
export function headers(exchange) {
  contexts = exchange.contexts;
  const ids = makers(exchange);
  const all = calls(exchange);
  const list = all.slice(0, MAX_HOPS);
  const sent = sentHeaders(exchange);
  const names = [...new Set([...ORDER, ...list.flatMap((call) => Object.keys(call.headers))])].filter((name) => list.some((call) => call.headers[name]?.length) || sent[name]);
  const columns = list.map((call) => {
    const cells = names.map((name) => {
      const what = change(name, call);
      const values = call.headers[name] ?? [];
      return h('li', { class: `cell ${what}`, 'data-header': name },
        h('div', { class: 'cell-name' }, h('code', null, name), WORDS[what] && h('span', { class: `badge ${what}` }, WORDS[what])),
        h('div', { class: 'value' }, values.length ? values.map((value) => h('code', null, marked(value, ids))) : h('span', { class: 'none' }, 'not there')),
        h('p', { class: 'why' }, sentence(name, what, call)));
    });
    const reply = call.reply;
    let made;
    if (reply) {
      const broken = call.before?.reply?.trace_id && reply.trace_id !== call.before.reply.trace_id;
      made = h('div', { class: 'made' },
        reply.propagation === 'forward' ? h('p', null, `${plain(reply.service)} passes trace headers on and records nothing.`)
          : [h('p', null, `${plain(reply.service)} makes its own span `, pill(reply.span_id, ids), reply.parent_span_id ? [' below ', pill(reply.parent_span_id, ids)] : ', the root', ' in trace ', pill(reply.trace_id, ids), reply.sampled === false && ', and does not record it'),
            broken && h('p', { class: 'bad' }, 'This is another trace than the caller’s: the picture is broken in two here. ', h('a', { href: `#/trace/${reply.trace_id}` }, 'See the other part'))],
        reply.injected && h('p', { class: 'bad' }, struck(reply)));
    } else if (!call.before && !call.error && call.status < 400) made = h('p', { class: 'made' }, `${plain(call.to)} answered ${call.status}. ${plain(call.path, 60)} calls no other service.`);
    else made = h('p', { class: 'made bad' }, `No reply from ${plain(call.to)}: ${plain(call.error ?? `answered ${call.status}`)}.`);
    const seams = exchange.seams.filter((seam) => seam.from === call.from && seam.to === call.to);
    return h('section', { class: `edge${seams.some((seam) => seam.broken) ? ' broken' : seams.length ? ' lossy' : ''}`, 'aria-label': `${call.from} to ${call.to}` },
      h('h3', null, who(call.from), h('span', { 'aria-hidden': 'true' }, ' → '), h('span', { class: 'sr' }, ' to '), who(call.to)), h('ul', null, cells), made);
  });
  const grid = h('div', { class: 'calls', tabindex: '0', role: 'region', 'aria-label': 'Headers of each call, side by side' }, columns);
  grid.style.setProperty('--n', list.length);
  grid.style.setProperty('--rows', names.length);
  const follow = (on) => (event) => {
    const id = event.target.closest?.('.id')?.dataset.id;
    for (const el of grid.querySelectorAll('.id')) el.classList.toggle('same', on && Boolean(id) && el.dataset.id === id);
  };
  grid.addEventListener('pointerover', follow(true));
  grid.addEventListener('pointerleave', follow(false));
  return [
    h('p', { class: 'legend' }, h('span', null, h('span', { class: 'id trace' }, 'trace id')), h('span', null, h('span', { class: 'id own' }, 'a service’s own span')), h('span', null, h('span', { class: 'id call' }, 'a call it makes')),
      h('span', { class: 'hint' }, 'Each id has the colour of the service that made it. Point at one to see where else it is.')),
    grid, all.length > list.length && h('p', { class: 'hint' }, `${all.length - list.length} more calls are not drawn.`)];
}

/** What a fault did, in a sentence. */
function struck(reply) {
  const { delay_ms: delay, abort_status: abort, ...others } = reply.injected;
  const more = Object.entries(others).filter(([, value]) => value != null).map(([name, value]) => `${name.replaceAll('_', ' ')}: ${[value].flat().join(', ')}`);
  return `A fault struck ${plain(reply.service, 40)}: ${[delay && `it waited ${delay} ms more`, abort && `it answered ${abort} and called nobody`, ...more.map((text) => plain(text, 120))].filter(Boolean).join(', and ')}.`;
}

function who(name) {
  return Object.values(NAMES).includes(name) ? Caller(name) : [h('span', { class: 'dot', 'data-c': colour(name) }), ` ${plain(name, 40)}`];
}

/** What spans alone prove about the headers of a request that somebody else sent. */
export function derived(trace) {
  const ids = new Map([[trace.id, { trace: true }]]);
  for (const row of trace.rows) ids.set(row.span.id, { service: row.service, call: row.span.kind === 'CLIENT' });
  const made = trace.rows.filter((row) => row.span.kind === 'CLIENT').slice(0, MAX_HOPS).map((row) => {
    const servers = row.children.map((c) => trace.rows[c]).filter((c) => c.span.kind === 'SERVER');
    return h('li', null, h('strong', null, plain(row.service, 40)), ' made a call with trace id ', pill(trace.id, ids), ' and span id ', pill(row.span.id, ids),
      servers.length ? servers.map((s) => [', and ', h('strong', null, plain(s.service, 40)), s.span.id === row.span.id ? ' took that id over for its own half.' : [' put its own span ', pill(s.span.id, ids), ' below it.']]) : ', and nobody has reported a span below it.');
  });
  return [h('p', null, 'Nobody kept the headers of this request: it did not pass this chain, or 500 newer ones did. The spans alone prove this much:'),
    made.length ? h('ol', { class: 'story' }, made) : h('p', { class: 'hint' }, 'There is no call between two services in this trace.'),
    document.body.dataset.kind !== 'store' && h('p', { class: 'hint' }, 'The headers of every request that the chain answers are kept: the newest 500, and at most 16 MiB.')];
}

/** How the trace id came from the first hop to the last, a sentence per step. */
export function story(trace, exchange) {
  if (exchange?.reply) return told(exchange);
  if (!trace) return null;
  const ids = new Map([[trace.id, { trace: true }]]);
  for (const row of trace.rows) ids.set(row.span.id, { service: row.service, call: row.span.kind === 'CLIENT' });
  const root = trace.rows[0];
  const first = h('strong', null, plain(root.service || 'somebody', 40));
  const begin = root.span.parentId ? ['The caller sent the trace id ', pill(trace.id, ids), ', and ', first, ' continued that trace.'] : ['The caller sent no trace id, so ', first, ' made one: ', pill(trace.id, ids), '.'];
  return [h('li', null, begin), h('li', null, trace.rows.length === 1 ? 'Its only span carries it.' : `All ${trace.rows.length} spans carry it, whoever reported them. That alone makes them one trace.`)];
}

function told(exchange) {
  contexts = exchange.contexts;
  const ids = makers(exchange);
  const root = exchange.reply;
  const bold = (name) => h('strong', null, plain(name, 40));
  const steps = [];
  const sent = sentHeaders(exchange);
  const name = NAMES[exchange.sender];
  if (root.propagation === 'forward') return null;
  steps.push(traceIds(sent).includes(root.trace_id) || traceIds(sent).some((id) => root.trace_id.endsWith(id))
    ? [`${Caller(name)} made up the trace id `, pill(root.trace_id, ids), ' and sent it along. ', bold(root.service), ' kept it.']
    : [exchange.sender === 'demo' ? 'The demo sent this first request without a trace id, so ' : `${Caller(name)} sent no trace id, so `, bold(root.service), ' made one: ', pill(root.trace_id, ids), '.']);
  const hit = (reply) => reply?.injected && steps.push({ bad: true, text: struck(reply) });
  hit(root);
  const all = calls(exchange).slice(1);
  for (const call of all.slice(0, 4)) {
    const spoken = ['traceparent', 'x-b3-traceid', 'b3'].filter((name) => call.headers[name]?.length);
    if (!call.reply) {
      steps.push({ bad: true, text: [bold(call.from), ' called ', bold(call.to), `, and got no reply: ${plain(call.error ?? '', 120)}.`] });
    } else if (call.reply.trace_id === call.before.reply.trace_id) {
      steps.push([bold(call.from), ' called ', bold(call.to), ` and wrote the trace id into ${spoken.length ? spoken.map((name) => (name === 'x-b3-traceid' ? 'x-b3-*' : name)).join(' and ') : 'the headers'}, beside the id of this call, `, call.reply.parent_span_id && pill(call.reply.parent_span_id, ids), '. ', bold(call.to), ' kept the one and took the other as the parent of its own span.']);
    } else {
      steps.push({ bad: true, text: [bold(call.from), ' called ', bold(call.to), ', but the trace id got lost on the way: ', bold(call.to), ' began another trace, ', pill(call.reply.trace_id, ids), '.'] });
    }
    hit(call.reply);
  }
  if (all.length > 4) steps.push(`And so on, for ${all.length - 4} more calls.`);
  if (root.sampled === false) steps.push('It was not sampled: the ids travelled all the same, but nobody recorded a span.');
  return steps.map((step) => h('li', { class: step.bad ? 'bad' : null }, step.text ?? step));
}
