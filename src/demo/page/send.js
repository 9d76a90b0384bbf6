// Sending requests: which headers, how many, and the same as curl.

import { $, h, say, plain, order, counted } from './dom.js';

const AT_ONCE = 4;
const PAUSE_MS = 250;
let front = '';
let next = [];
let open = () => {}, failed = () => {};
let keeping = false, busy = 0, sentCount = 0, failedCount = 0, mayOrder = true;

function hex(bytes) {
  const id = crypto.getRandomValues(new Uint8Array(bytes));
  // All zeros is no id.
  if (id.every((byte) => byte === 0)) id[0] = 1;
  return [...id].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** The headers of one request, with ids that nobody has used. */
function headers() {
  const speaks = $('speaks').value, sampled = $('sampled').checked;
  const trace = hex(16), span = hex(8);
  const list = [];
  if (speaks === 'w3c' || speaks === 'both') list.push(['traceparent', `00-${trace}-${span}-${sampled ? '01' : '00'}`]);
  if (speaks === 'b3multi' || speaks === 'both') list.push(['x-b3-traceid', trace], ['x-b3-spanid', span], ['x-b3-sampled', sampled ? '1' : '0']);
  if (speaks === 'b3') list.push(['b3', `${trace}-${span}-${sampled ? '1' : '0'}`]);
  // Without ids the decision can still be told.
  if (speaks === 'nothing' && !sampled) list.push(['x-b3-sampled', '0']);
  const lane = $('lane').value.trim(), baggage = $('baggage').value.trim();
  if (lane) list.push(['x-lane', lane]);
  if (baggage) list.push(['baggage', baggage]);
  return list;
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function prepare() {
  next = headers();
  const lines = next.map(([name, value]) => `-H ${quote(`${name}: ${value}`)}`);
  say($('curl'), ['curl', ...lines, `http://${front}/service1`].join(' \\\n  ').replace(/^curl \\\n {2}http/, 'curl http'));
}

async function one(thenOpen) {
  const sent = next;
  prepare();
  busy++;
  tell();
  let error = '';
  try {
    const exchange = await order({ send: { headers: sent } });
    sentCount++;
    if (exchange.error || exchange.status >= 400) failedCount++;
    if (exchange.error) error = `service1: ${exchange.error}`;
    // Without an answer there is no trace to show.
    if (thenOpen && exchange.trace_id) open(exchange);
    else if (error) failed(`${plain(error)}.`);
    return true;
  } catch (refused) {
    error = refused.message;
    if (thenOpen) failed(`${plain(error)}${/[.!?]$/.test(error) ? '' : '.'}`);
    keep(false);
    return false;
  } finally {
    busy--;
    tell(error);
  }
}

async function many(count) {
  let left = count;
  const worker = async () => { while (left-- > 0 && (await one(false))); };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, count) }, worker));
}

async function keep(on) {
  if (on === keeping) return;
  keeping = on;
  $('keep').setAttribute('aria-pressed', String(on));
  say($('keep'), on ? 'Stop sending' : 'Keep sending');
  while (keeping) {
    // In a tab that nobody looks at, the browser slows this down by itself.
    const [ok] = await Promise.all([one(false), new Promise((done) => setTimeout(done, PAUSE_MS))]);
    if (!ok) return;
  }
}

function tell(error) {
  const text = `${counted(sentCount, 'request')} sent${failedCount ? `, ${failedCount} failed` : ''}${busy ? `, ${busy} on the way` : ''}.`;
  say($('sent'), error ? `${text} ${plain(error)}` : sentCount || busy ? text : 'Nothing sent yet.');
  $('sent').classList.toggle('bad', Boolean(error));
}

/** Where requests go, and whether this page may send any. */
export function target(address, watchingOnly) {
  mayOrder = !watchingOnly;
  // From another machine, the demo's own loopback address is somebody else's.
  if (!/^(localhost|127\.|\[::1\])/.test(location.hostname) && address.startsWith('127.')) address = address.replace(/^[^:]+/, location.hostname);
  for (const id of ['one', 'ten', 'hundred', 'keep']) $(id).disabled = !mayOrder;
  if (front !== address) {
    front = address;
    prepare();
  }
}

/** `show` is called with the exchange of a request that was sent alone, `fail` with why there is none. */
export function start(show, fail) {
  open = show;
  failed = fail;
  for (const id of ['speaks', 'sampled', 'lane', 'baggage']) $(id).addEventListener('input', prepare);
  $('form').addEventListener('submit', (event) => { event.preventDefault(); if (mayOrder) one(true); });
  $('ten').addEventListener('click', () => many(10));
  $('hundred').addEventListener('click', () => many(100));
  $('keep').addEventListener('click', () => keep(!keeping));
  $('copy').addEventListener('click', async () => {
    let done = 'Copied';
    try {
      await navigator.clipboard.writeText($('curl').textContent);
    } catch {
      // Without the permission the text is at least selected.
      getSelection().selectAllChildren($('curl'));
      done = 'Selected';
    }
    say($('copy'), done);
    setTimeout(() => say($('copy'), 'Copy'), 1500);
  });
}
