// The answer of a request: its body as it was sent, and as a tree.

import { h, plain, time, counted } from './dom.js';

const SHOWN = 200_000;

/** What there is to see of an answer. */
export function answer(exchange) {
  const { body, body_bytes: bytes, is_cut: cut, status, reply } = exchange;
  const parsed = reply ?? read(body);
  const open = (name, label, inside, on) => h('details', { class: 'body', open: on }, h('summary', null, label), h('div', { class: `body-${name}` }, inside));
  const raw = body == null ? h('p', { class: 'hint' }, `${counted(bytes, 'byte')} that are no text.`)
    : body === '' ? h('p', { class: 'hint' }, 'The answer had no body.') : h('pre', { tabindex: '0', role: 'region', 'aria-label': 'The body as it was sent' }, plainLines(body));
  return [
    h('p', { class: 'facts-line' }, h('strong', null, status == null ? 'no answer' : status === 499 ? 'not answered to the end' : `status ${status}`), `${counted(bytes, 'byte')}, ${time(exchange.duration_ms * 1000)}, ${plain(exchange.method, 20)} ${plain(exchange.url, 200)}`),
    exchange.error && h('p', { class: 'bad' }, plain(exchange.error)),
    parsed ? open('tree', 'As a tree', h('ul', { class: 'json' }, node('', parsed, 0)), true)
      : h('p', { class: 'hint' }, body ? 'It is no JSON, so there is no tree of it.' : ''),
    reply && body != null && read(body) == null && h('p', { class: 'hint' }, 'The caller asked for text, so that is what was sent. The tree is the same reply.'),
    open('raw', 'Raw', [raw, (cut || (body?.length ?? 0) > SHOWN) && h('p', { class: 'hint' }, 'The rest is not shown.')], !parsed)];
}

function read(text) {
  try { return JSON.parse(text); } catch { return null; }
}

/** A text of many lines with what misleads made visible. */
const plainLines = (text) => text.slice(0, SHOWN).split('\n').map((line) => plain(line, SHOWN)).join('\n');

/** One value with its name; objects and lists can be folded. */
function node(name, value, depth) {
  const label = name === '' ? null : h('span', { class: 'key' }, plain(name, 80));
  if (value === null || typeof value !== 'object') {
    return h('li', null, label, label && ': ', h('span', { class: `value-${value === null ? 'null' : typeof value}` }, plain(typeof value === 'string' ? value : JSON.stringify(value), 2000)));
  }
  const entries = Object.entries(value);
  if (!entries.length) return h('li', null, label, label && ': ', Array.isArray(value) ? '[]' : '{}');
  const what = typeof value.service === 'string' && value.status ? `${value.service} ${value.version ?? ''}, ${value.status}, ${time((value.duration_ms ?? 0) * 1000)}`
    : typeof value.url === 'string' ? `${value.url}, ${value.status ?? value.error ?? 'no answer'}` : Array.isArray(value) ? (value.length === 1 && typeof value[0] !== 'object' ? String(value[0]) : counted(value.length, 'entry', 'entries')) : counted(entries.length, 'field');
  // The way down to every hop is open; the rest is a press away. A short list is its own line.
  if (Array.isArray(value) && value.length === 1 && typeof value[0] !== 'object') return h('li', null, label, ': ', h('span', { class: 'value-string' }, plain(what, 2000)));
  const way = depth === 0 || name === 'upstreams' || name === 'reply' || typeof value.url === 'string';
  return h('li', null, h('details', { open: way && depth < 400 }, h('summary', null, label, label && ': ', h('span', { class: typeof value.service === 'string' ? 'of-hop' : 'hint' }, plain(what, 200))),
    h('ul', { class: 'json' }, entries.map(([key, inner]) => node(Array.isArray(value) ? `${Number(key) + 1}` : key, inner, depth + 1)))));
}
