// Elements, and how figures are written. Text of others comes in as text nodes and attributes only, never as HTML.

/** Makes an element. `props`: attributes; `class`; `on…` listeners; false and null are left out. Children: elements or text. */
export function h(tag, props, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === false || value == null) continue;
    if (key.startsWith('on')) el.addEventListener(key.slice(2), value);
    else el.setAttribute(key, value === true ? '' : value);
    // The first eight colours are chosen by hand; further ones go round the circle by the golden angle, in rings of lightness.
    if (key === 'data-c' && value >= PALETTE) {
      el.style.setProperty('--h', ((value * 137.508) % 360).toFixed(1));
      el.style.setProperty('--ring', Math.floor(value / PALETTE) % 3);
    }
  }
  add(el, children);
  return el;
}

function add(el, children) {
  for (const child of children.flat(Infinity)) {
    if (child != null && child !== false) el.append(child);
  }
}

export const $ = (id) => document.getElementById(id);

/** Replaces what is in an element. */
export function fill(el, ...children) {
  el.replaceChildren();
  add(el, children);
}

/** Writes a text only if it is another: screen readers and selections are not disturbed. */
export function say(el, text) {
  if (el.textContent !== text) el.textContent = text;
}

/** Text of others, made visible: control and direction characters are shown, and it has an end. */
export function plain(text, max = 300) {
  const shown = String(text).slice(0, max + 1).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, (c) =>
    '\\u' + c.charCodeAt(0).toString(16).padStart(4, '0'));
  return shown.length > max ? shown.slice(0, max) + '…' : shown;
}

/** Microseconds for people. */
export function time(us) {
  if (us == null || !Number.isFinite(us)) return '–';
  if (us < 1000) return `${Math.round(us)} µs`;
  const ms = us / 1000;
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
  const s = ms / 1000;
  return s < 120 ? `${s < 10 ? s.toFixed(2) : s.toFixed(1)} s` : `${(s / 60).toFixed(1)} min`;
}

export function counted(n, one, many = one + 's') {
  return `${n.toLocaleString('en')} ${n === 1 ? one : many}`;
}

/** The wall clock of microseconds since 1970. */
export function clock(us) {
  const d = new Date(us / 1000);
  if (!us || Number.isNaN(d.getTime())) return 'no time';
  const two = (n) => String(n).padStart(2, '0');
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}.${String(d.getMilliseconds()).padStart(3, '0')}`;
}

const PALETTE = 8;
const COLOURS = 64;
const known = new Map();

/** The hops have their place in the chain as colour. */
export function nameHops(names) {
  known.clear();
  names.forEach((name, i) => known.set(name, i % COLOURS));
}

/** A service's colour: the same in every view and every trace. */
export function colour(service) {
  if (known.has(service)) return known.get(service);
  let hash = 2166136261;
  for (const c of String(service)) hash = Math.imul(hash ^ c.codePointAt(0), 16777619);
  return (hash >>> 0) % COLOURS;
}

/** Gives an order to the demo. Throws what it says when it refuses. */
export async function order(body) {
  const answer = await fetch('/demo/control', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error((await answer.text()).trim() || `answered ${answer.status}`);
  return answer.json();
}
