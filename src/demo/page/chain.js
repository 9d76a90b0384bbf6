// The chain at the top: one card per hop, its live figures, its lights, and the sliders.

import { $, h, fill, say, plain, colour, order, nameHops } from './dom.js';

const STOPS = [0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000, 3000, 5000];
let cards = [];
let shape = '';
let passed = [];
/** When the next hop may light up. */
let free = 0;

/** Draws the chain, or brings it up to date when it is the same one. */
export function chain(data) {
  nameHops(data.hops.map((hop) => hop.name));
  const now = JSON.stringify([data.fan_out, data.hops.map((hop) => [hop.name, hop.address, hop.calls])]);
  if (now !== shape) {
    shape = now;
    passed = [];
    cards = data.hops.map((hop, i) => card(hop, i + 1));
    const you = h('div', { class: 'you' }, h('strong', null, 'You'), h('span', null, 'or curl'));
    const step = (el, text) => h('li', { class: 'step' }, h('span', { class: 'arrow', 'aria-hidden': 'true' }), text && h('span', { class: 'how' }, text), el);
    const first = [h('li', { class: 'step' }, you), step(cards[0].el)];
    if (data.fan_out && cards.length > 1) {
      const how = data.fan_out === 'parallel' ? 'calls all of these at once' : 'calls these one after the other';
      fill($('hops'), h('ol', { class: 'row fan' }, first, h('li', { class: 'step wide' }, h('span', { class: 'arrow', 'aria-hidden': 'true' }), h('div', { class: 'fanned' },
        h('p', { class: 'how' }, `${data.hops[0].name} ${how}`), h('ol', { class: 'row' }, cards.slice(1).map((c) => h('li', null, c.el)))))));
    } else {
      fill($('hops'), h('ol', { class: 'row' }, first, cards.slice(1).map((c) => step(c.el))));
    }
  }
  data.hops.forEach((hop, i) => cards[i].plan(hop, data.watching_only));
  const notice = $('notice');
  notice.hidden = !data.watching_only;
  say(notice, data.watching_only ? `You are watching only: ${data.watching_only}.` : '');
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

function card(hop, number) {
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
  const adjust = sliders(hop, number);
  fill(el,
    h('div', { class: 'who' }, h('span', { class: 'dot' }), h('h3', null, hop.name), health),
    h('p', { class: 'label' }, `${hop.version} · lane ${hop.lane} · ${hop.address}`),
    h('dl', { class: 'figures' }, rateBox, errorsBox, p50Box, p99Box), drops, adjust.el);
  let timer = 0;
  return {
    el,
    plan(now, watchingOnly) {
      drops.hidden = !now.drops.length;
      say(drops, now.drops.length ? `loses on purpose: ${now.drops.join(', ')}` : '');
      if (!now.running) tell(health, 'stopped', 'stopped');
      else if (health.dataset.s === 'stopped') tell(health, 'unknown', 'starting');
      el.classList.toggle('stopped', !now.running);
      adjust.update(now, watchingOnly);
    },
    figures(now) {
      const state = now.health.state;
      if (!el.classList.contains('stopped') || state === 'no_answer') {
        const text = { ready: 'ready', not_ready: `not ready: ${now.health.why}`, no_answer: 'no answer', unknown: 'asking' }[state];
        tell(health, state, el.classList.contains('stopped') ? 'stopped' : text, now.health.why);
      }
      say(rate, now.rate < 100 ? now.rate.toFixed(1) : String(Math.round(now.rate)));
      say(errors, now.errors == null ? '–' : `${(now.errors * 100).toFixed(now.errors > 0 && now.errors < 0.1 ? 1 : 0)}%`);
      errors.classList.toggle('bad', now.errors > 0);
      say(p50, ms(now.p50_ms));
      say(p99, ms(now.p99_ms));
    },
    light(bad, delay) {
      // Once more from the start, also when it is lit already.
      setTimeout(() => {
        el.classList.remove('lit', 'lit-bad');
        void el.offsetWidth;
        el.classList.add(bad ? 'lit-bad' : 'lit');
        clearTimeout(timer);
        timer = setTimeout(() => el.classList.remove('lit', 'lit-bad'), 900);
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

/** The hop's sliders. What was started with and has no slider (a second abort, say) stays as it is. */
function sliders(hop, number) {
  const stops = [...new Set([...STOPS, ...(hop.plan.latency_ms ?? [])])].sort((a, b) => a - b);
  const first = hop.plan;
  let plan = first, timer = 0, changing = 0;
  const error = h('p', { class: 'refused', role: 'alert', hidden: true });
  const slider = (label, max, text, set) => {
    const out = h('output');
    const input = h('input', { type: 'range', min: 0, max, step: 1, 'aria-label': `${hop.name}: ${label}` });
    const show = () => {
      const value = text(Number(input.value));
      say(out, value);
      input.setAttribute('aria-valuetext', value);
    };
    input.addEventListener('input', () => { set(Number(input.value)); show(); later(); });
    return { row: h('div', { class: 'slider' }, h('span', null, label), out, input), input, show };
  };
  const wait = (v) => (stops[v] < 1000 ? `${stops[v]} ms` : `${stops[v] / 1000} s`);
  const place = (value) => stops.reduce((best, stop, i) => (Math.abs(stop - value) < Math.abs(stops[best] - value) ? i : best), 0);
  const nowLatency = () => plan.latency_ms ?? [0, 0];
  const low = slider('latency from', stops.length - 1, wait, (v) => { plan = { ...plan, latency_ms: [stops[v], Math.max(stops[v], nowLatency()[1])] }; draw(); });
  const high = slider('latency up to', stops.length - 1, wait, (v) => { plan = { ...plan, latency_ms: [Math.min(stops[v], nowLatency()[0]), stops[v]] }; draw(); });
  // The first fault of its kind has the slider; without one, the usual kind is made.
  const of = (kind) => plan.faults.findIndex((fault) => kind in fault);
  const rate = (kind, made) => (percent) => {
    const at = of(kind), faults = [...plan.faults];
    const fault = { [kind]: { ...(at < 0 ? made : faults[at][kind]), percent } };
    if (at < 0) faults.push(fault); else faults[at] = fault;
    plan = { ...plan, faults };
  };
  const percent = (v) => `${v}%`;
  const abort = slider('answers 503', 100, percent, rate('abort', { status: 503 }));
  const delay = slider('waits 2 s more', 100, percent, rate('delay', { ms: 2000 }));
  const reset = h('button', { type: 'button', class: 'small', onclick: () => { plan = first; draw(); later(); } }, 'Reset');
  let running = true;
  const run = h('button', { type: 'button', class: 'small', onclick: () => act({ run: { hop: number, running: !running } }) }, 'Stop');
  const curve = h('p', { class: 'hint', hidden: true }, 'Latency follows a curve of percentiles, until you move a slider.');
  const controls = h('fieldset', null, h('legend', { class: 'sr' }, `Latency and faults of ${hop.name}`), low.row, high.row, curve, abort.row, delay.row, h('div', { class: 'buttons' }, reset, run), error);
  const summary = h('summary', null, 'Adjust', h('span', { class: 'sr' }, ` ${hop.name}`), h('span', { class: 'altered' }));
  const el = h('details', { class: 'adjust' }, summary, controls);

  function draw() {
    const [from, to] = nowLatency();
    low.input.value = place(from);
    high.input.value = place(to);
    curve.hidden = plan.latency_ms != null;
    const share = (kind) => Math.round(plan.faults[of(kind)]?.[kind].percent ?? 0);
    abort.input.value = share('abort');
    delay.input.value = share('delay');
    const status = plan.faults[of('abort')]?.abort.status ?? 503, more = plan.faults[of('delay')]?.delay.ms ?? 2000;
    say(abort.row.firstChild, `answers ${status}`);
    say(delay.row.firstChild, `waits ${more < 1000 ? `${more} ms` : `${more / 1000} s`} more`);
    for (const s of [low, high, abort, delay]) s.show();
    const active = plan.faults.some((fault) => Object.values(fault)[0].percent > 0);
    say(summary.lastChild, active ? 'faults on' : JSON.stringify(plan.latency_ms) !== JSON.stringify(first.latency_ms) ? 'changed' : '');
    summary.lastChild.classList.toggle('bad', active);
  }
  function later() {
    clearTimeout(timer);
    changing++;
    timer = setTimeout(() => { changing = 0; act({ plan: { hop: number, plan } }); }, 120);
  }
  async function act(what) {
    try {
      await order(what);
      error.hidden = true;
    } catch (refused) {
      error.hidden = false;
      say(error, plain(refused.message));
    }
  }
  draw();
  return {
    el,
    update(now, watchingOnly) {
      controls.disabled = Boolean(watchingOnly);
      running = now.running;
      say(run, running ? 'Stop this hop' : 'Start it again');
      // Not under the finger that is moving it.
      if (!changing) { plan = now.plan; draw(); }
    },
  };
}
