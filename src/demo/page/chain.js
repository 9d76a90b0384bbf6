// The chain at the top: one card per hop, its live figures, its lights, and the sliders.

import { $, h, fill, say, plain, colour, nameHops } from './dom.js';
import { adjust } from './adjust.js';

/** A longer chain is drawn as a strip, and so is one whose cards have less room than this, in pixels. */
const CARDS = 5;
const CARD = 185;
const narrow = matchMedia('(max-width: 720px)');
let cards = [];
let shape = '';
let config = null;
let passed = [];
/** The hop whose card is open below the strip. */
let chosen = 0;
/** What the open trace shows of the ways between hops. */
let marked = { seams: [], broken: [] };
/** When the next hop may light up. */
let free = 0;

/** Draws the chain, or brings it up to date when it is the same one. */
export function chain(data) {
  config = data;
  nameHops(data.hops.map((hop) => hop.name));
  const kind = JSON.stringify([data.fan_out, data.hops.map((hop) => [hop.name, hop.address, hop.calls])]);
  if (kind !== shape) {
    shape = kind;
    passed = [];
    chosen = 0;
    cards = data.hops.map((hop, i) => card(hop, i + 1, data));
    lay();
  }
  data.hops.forEach((hop, i) => cards[i].plan(hop, data.watching_only));
  const notice = $('notice');
  notice.hidden = !data.watching_only;
  say(notice, data.watching_only ? `You are watching only: ${data.watching_only}.` : '');
}

/** As cards beside each other, as a tree, or as a strip with one card below it. */
function form() {
  if (config.fan_out && cards.length > 1) return 'tree';
  if (cards.length > CARDS) return 'strip';
  const room = $('hops').clientWidth;
  return narrow.matches || room >= 90 + cards.length * (CARD + 38) ? 'cards' : 'strip';
}

const you = () => h('div', { class: 'you' }, h('strong', null, 'You'), h('span', null, 'or curl'));

function lay() {
  const kind = form();
  const root = $('hops');
  root.dataset.form = kind;
  cards.forEach((card) => card.alone(kind));
  if (kind === 'tree') {
    const most = /^parallel=(\d+)$/.exec(config.fan_out)?.[1];
    const how = most ? `calls these ${most} at a time` : config.fan_out === 'parallel' ? 'calls all of these at once' : 'calls these one after the other';
    fill(root, h('div', { class: 'tree-root' }, you(), arrow(-1), cards[0].el), h('p', { class: 'how' }, `${config.hops[0].name} ${how}`),
      h('ol', { class: 'branches' }, cards.slice(1).map((card, i) => h('li', { class: 'branch fanned' }, arrow(i), card.el))));
  } else if (kind === 'strip') {
    const strip = h('ol', { class: 'strip', 'aria-label': 'The hops in order' }, h('li', { class: 'step' }, you()), cards.map((card, i) => h('li', { class: 'step' }, arrow(i - 1), card.chip)));
    fill(root, strip, h('div', { class: 'opened' }, cards.map((card) => card.el)));
    choose(chosen);
  } else {
    fill(root, h('ol', { class: 'row' }, h('li', { class: 'step' }, you()), cards.map((card, i) => h('li', { class: 'step' }, arrow(i - 1), card.el))));
  }
  mark();
}

new ResizeObserver(() => { if (config?.hops.length && form() !== $('hops').dataset.form) lay(); }).observe($('hops'));

/** The way to a hop; `from` is the place of its caller, -1 for whoever sends. */
function arrow(from) {
  return h('span', { class: 'way', 'data-from': from }, h('span', { class: 'arrow', 'aria-hidden': 'true' }));
}

/** Opens the card of a hop below the strip. */
function choose(at) {
  chosen = at;
  cards.forEach((card, i) => { card.el.hidden = i !== at; card.chip.setAttribute('aria-pressed', String(i === at)); });
}

/** Marks where the open trace broke: `seams` by the request's headers, `verdict` by its spans. */
export function seams(seams, verdict) {
  marked = { seams, broken: seams.length ? [] : verdict?.broken_at ?? [] };
  mark();
}

function mark() {
  const root = $('hops');
  const fan = config?.fan_out;
  for (const way of root.querySelectorAll('.way')) {
    const at = way.closest('li, .tree-root');
    const to = cards.find((card) => at?.contains(card.el) || at?.contains(card.chip));
    const from = way.dataset.from === '-1' ? 'the caller' : fan ? cards[0].name : cards[Number(way.dataset.from)]?.name;
    const here = marked.seams.filter((seam) => seam.to === to?.name && seam.from === from);
    const broken = here.some((seam) => seam.broken) || (marked.broken.includes(to?.name) && from !== 'the caller');
    way.classList.toggle('broken', broken);
    way.classList.toggle('lossy', !broken && here.length > 0);
    const names = short([...new Set(here.flatMap((seam) => seam.headers))]);
    way.title = here.map((seam) => seam.text).join('\n');
    const key = JSON.stringify([broken, from, names]);
    if (way.dataset.key === key) continue;
    way.dataset.key = key;
    way.querySelector('.lack')?.remove();
    if (broken || here.length) way.append(h('span', { class: 'lack' }, h('span', { class: 'sr' }, `${broken ? 'The trace broke' : 'A header was lost'} between ${from} and ${to?.name}: `), names.length ? names.map((name) => h('span', null, plain(name, 40))) : 'broken'));
  }
}

/** Names of headers, those of B3 as one. */
function short(names) {
  const many = names.filter((name) => name.startsWith('x-b3-')).length > 1;
  return [...new Set(names.map((name) => (many && name.startsWith('x-b3-') ? 'x-b3-*' : name)))].slice(0, 4);
}

/** Figures and health of every hop. */
export function ticked(hops) {
  hops.forEach((hop, i) => cards[i]?.figures(hop));
}

/** Lights up the hops that requests have reached since last time. */
export function lights(hops) {
  const clock = performance.now();
  hops.forEach((now, i) => {
    const before = passed[i];
    if (before && cards[i] && (now.began > before.began || now.failed > before.failed)) {
      // One after the other, so that the eye can follow; under load they catch up rather than queue.
      const at = Math.max(clock, Math.min(free, clock + 400));
      free = at + 80;
      cards[i].light(now.failed > before.failed, at - clock);
    }
  });
  passed = hops;
}

function card(hop, number, data) {
  const el = h('article', { class: 'hop', 'aria-label': hop.name, 'data-c': colour(hop.name) });
  const health = h('span', { class: 'health', 'data-s': 'unknown' }, 'asking');
  const figure = (label, title) => {
    const value = h('dd', null, '–');
    return [value, h('div', { title }, h('dt', null, label), value)];
  };
  const [rate, rateBox] = figure('req/s', 'Requests that ended, per second');
  const [errors, errorsBox] = figure('errors', 'Answered with 500 or above, or not at all');
  const [p50, p50Box] = figure('p50', 'Half of the requests were faster than this');
  const [p99, p99Box] = figure('p99', '99 of 100 requests were faster than this');
  const drops = h('p', { class: 'drops', hidden: true });
  const controls = adjust(hop, number, data);
  const chipHealth = h('span', { class: 'dot-health', 'data-s': 'unknown' });
  const chipTook = h('span', { class: 'chip-took' }, '–'), chipBad = h('span', { class: 'chip-bad' }), chipBroken = h('span', { class: 'chip-bad' });
  const chip = h('button', { type: 'button', class: 'chip', 'data-c': colour(hop.name), 'aria-pressed': 'false', onclick: () => choose(number - 1) },
    h('span', { class: 'chip-name' }, hop.name), h('span', { class: 'chip-line' }, chipHealth, chipTook, chipBad, chipBroken));
  fill(el,
    h('div', { class: 'who' }, h('span', { class: 'dot' }), h('h3', null, hop.name), health),
    h('p', { class: 'label' }, `${hop.version} · lane ${hop.lane} · ${hop.address}`),
    h('dl', { class: 'figures' }, rateBox, errorsBox, p50Box, p99Box), drops, controls.el);
  let timer = 0;
  /** A figure that nothing renews stays as it was, in grey. */
  const keep = (el, value, text) => {
    el.classList.toggle('old', value == null && el.textContent !== '–');
    el.title = value == null && el.textContent !== '–' ? 'The last one: no request ended in the last 10 seconds' : '';
    if (value != null) say(el, text(value));
  };
  const glow = (target, bad) => {
    target.classList.remove('lit', 'lit-bad');
    void target.offsetWidth;
    target.classList.add(bad ? 'lit-bad' : 'lit');
  };
  return {
    el,
    chip,
    name: hop.name,
    alone(form) {
      el.hidden = false;
      el.classList.toggle('line', form === 'tree' && number > 1);
    },
    plan(now, watchingOnly) {
      const broken = [now.drops.length && `loses on purpose: ${now.drops.join(', ')}`, now.faults.length && `faults: ${now.faults.join(', ')}`, now.breaks.length && `breaks: ${now.breaks.join(', ')}`].filter(Boolean).join(' · ');
      drops.hidden = !broken;
      say(drops, broken);
      say(chipBroken, broken ? 'faults on' : '');
      if (!now.running) tell(health, 'stopped', 'stopped');
      else if (health.dataset.s === 'stopped') tell(health, 'unknown', 'starting');
      el.classList.toggle('stopped', !now.running);
      chip.classList.toggle('stopped', !now.running);
      controls.update(now, watchingOnly);
    },
    figures(now) {
      const state = now.health.state;
      if (!el.classList.contains('stopped') || state === 'no_answer') {
        const text = { ready: 'ready', not_ready: /^not ready/.test(now.health.why) ? now.health.why : `not ready: ${now.health.why}`, no_answer: 'no answer', unknown: 'asking' }[state];
        tell(health, state, el.classList.contains('stopped') ? 'stopped' : text, now.health.why);
      }
      say(rate, now.rate < 100 ? now.rate.toFixed(1) : String(Math.round(now.rate)));
      rate.classList.toggle('old', now.rate === 0);
      keep(errors, now.errors, (share) => `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`);
      errors.classList.toggle('bad', now.errors > 0);
      keep(p50, now.p50_ms, ms);
      keep(p99, now.p99_ms, ms);
      keep(chipTook, now.p50_ms, ms);
      say(chipBad, now.errors > 0 ? `${Math.ceil(now.errors * 100)}% errors` : '');
      chipHealth.dataset.s = el.classList.contains('stopped') ? 'stopped' : state;
      chip.title = `${hop.name}: ${health.textContent}, p50 ${p50.textContent}, errors ${errors.textContent}`;
    },
    light(bad, delay) {
      // Once more from the start, also when it is lit already.
      setTimeout(() => {
        for (const target of [el, chip]) glow(target, bad);
        clearTimeout(timer);
        timer = setTimeout(() => { for (const target of [el, chip]) target.classList.remove('lit', 'lit-bad'); }, 900);
      }, delay);
    },
  };
}

function tell(el, state, text, why) {
  el.dataset.s = state;
  say(el, text);
  el.title = why ? plain(why) : '';
}

function ms(value) {
  if (value == null) return '–';
  return value < 1000 ? `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ms` : `${(value / 1000).toFixed(2)} s`;
}
