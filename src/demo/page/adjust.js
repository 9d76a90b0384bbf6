// What can be broken at a hop: latency, every fault and break that the program knows, the headers that it loses, whether it runs.

import { h, fill, say, plain, order } from './dom.js';

const STOPS = [0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 400, 500, 750, 1000, 1500, 2000, 3000, 5000];
const DELAY_MS = 150;

/** `abort=503@10%`, `reset`: the kind, its value, its rate in percent. */
function read(text) {
  const [, name, value, rate] = /^([a-z0-9-]+)(?:=(.*?))?(?:@([\d.]+)%)?$/.exec(text) ?? [null, text];
  return { name, value: value ?? '', rate: rate == null ? 100 : Number(rate) };
}

const written = ({ name, value, rate }) => `${name}${value === '' ? '' : `=${value}`}${rate === 100 ? '' : `@${rate}%`}`;

/** A checkbox, the value and the rate for each of the kinds; `changed` is called after each change. */
function kinds(hop, title, forms, changed) {
  /** What is written twice for one kind, or is no kind of ours, stays as it was. */
  let others = [];
  const rows = forms.map((form) => {
    const of = (what) => `${hop.name}: ${what} of ${form.name}`;
    const { name, value } = read(form.example);
    const on = h('input', { type: 'checkbox', 'aria-label': `${hop.name}: ${form.name}, ${form.about}` });
    const its = value === '' ? null : h('input', { type: 'text', 'aria-label': of('value'), maxlength: 60, autocomplete: 'off', spellcheck: 'false' });
    const rate = h('input', { type: 'number', 'aria-label': of('rate in percent'), min: 0, max: 100, step: 'any', placeholder: 100 });
    if (its) its.value = value;
    rate.value = 100;
    on.addEventListener('input', changed);
    for (const input of [its, rate]) input?.addEventListener('input', () => { if (on.checked) changed(); });
    const el = h('div', { class: 'kind', title: form.about }, h('label', null, on, h('span', null, form.name)), its, h('span', { class: 'rate' }, rate, '%'));
    return { name, el, on, its, rate };
  });
  const count = h('span', { class: 'altered bad' });
  const el = h('details', { class: 'kinds' }, h('summary', null, title, h('span', { class: 'sr' }, ` of ${hop.name}`), count), rows.map((row) => row.el));
  return {
    el,
    list: () => rows.filter((row) => row.on.checked).map((row) => written({ name: row.name, value: row.its?.value.trim() ?? '', rate: row.rate.value === '' ? 100 : Number(row.rate.value) })).concat(others),
    show(list) {
      others = [];
      for (const row of rows) row.on.checked = false;
      for (const text of list) {
        const one = read(text), row = rows.find((row) => row.name === one.name);
        if (!row || row.on.checked) { others.push(text); continue; }
        row.on.checked = true;
        if (row.its) row.its.value = one.value;
        row.rate.value = one.rate;
      }
      const active = list.filter((text) => read(text).rate > 0).length;
      say(count, active ? `${active} on` : '');
      return active;
    },
  };
}

/** The controls of one hop. `data`: the chain, with the kinds that there are. */
export function adjust(hop, number, data) {
  const stops = [...new Set([...STOPS, ...(hop.latency_ms ?? [])])].sort((a, b) => a - b);
  const first = hop;
  let range = hop.latency_ms, timers = {}, running = true, ready = true;
  const error = h('p', { class: 'refused', role: 'alert', hidden: true });

  async function act(what) {
    try {
      await order(what);
      error.hidden = true;
    } catch (refused) {
      error.hidden = false;
      say(error, plain(refused.message));
    }
  }
  /** Orders what is there a moment after the last change of its kind. */
  function later(what, make) {
    clearTimeout(timers[what]);
    timers[what] = setTimeout(() => { delete timers[what]; act(make()); }, DELAY_MS);
  }

  const slider = (label, set) => {
    const out = h('output');
    const input = h('input', { type: 'range', min: 0, max: stops.length - 1, step: 1, 'aria-label': `${hop.name}: ${label}` });
    input.addEventListener('input', () => {
      set(stops[Number(input.value)]);
      latency();
      later('latency', () => ({ latency: { hop: number, latency: range[0] === range[1] ? `${range[0]}ms` : `${range[0]}ms..${range[1]}ms` } }));
    });
    return {
      row: h('div', { class: 'slider' }, h('span', null, label), out, input),
      show(ms) {
        input.value = stops.reduce((best, stop, i) => (Math.abs(stop - ms) < Math.abs(stops[best] - ms) ? i : best), 0);
        const text = ms < 1000 ? `${ms} ms` : `${ms / 1000} s`;
        say(out, text);
        input.setAttribute('aria-valuetext', text);
      },
    };
  };
  const now = () => range ?? [0, 0];
  const low = slider('latency from', (ms) => { range = [ms, Math.max(ms, now()[1])]; });
  const high = slider('latency up to', (ms) => { range = [Math.min(ms, now()[0]), ms]; });
  const curve = h('p', { class: 'hint', hidden: true }, 'Latency follows a curve of percentiles, until you move a slider.');
  const changed = () => later('faults', () => ({ faults: { hop: number, faults: faults.list(), breaks: breaks.list() } }));
  const faults = kinds(hop, 'Faults', data.fault_kinds, changed);
  const breaks = kinds(hop, 'Broken traces', data.break_kinds, changed);
  const lost = data.carried.map((name) => {
    const box = h('input', { type: 'checkbox', 'aria-label': `${hop.name}: lose ${name}` });
    box.addEventListener('input', () => later('drop', () => ({ drop: { hop: number, headers: lost.filter((one) => one.box.checked).map((one) => one.name) } })));
    return { name, box, el: h('label', null, box, h('code', null, name)) };
  });
  const losing = h('span', { class: 'altered bad' });
  const headers = h('details', { class: 'kinds' }, h('summary', null, 'Lost headers', h('span', { class: 'sr' }, ` of ${hop.name}`), losing), lost.map((one) => one.el));
  const reset = h('button', { type: 'button', class: 'small', onclick: async () => {
    await act({ faults: { hop: number, faults: first.faults, breaks: first.breaks } });
    await act({ drop: { hop: number, headers: first.drops } });
    await act({ latency: { hop: number, latency: first.latency } });
  } }, 'Reset');
  const run = h('button', { type: 'button', class: 'small', onclick: () => act({ run: { hop: number, running: !running } }) }, 'Stop');
  const readiness = h('button', { type: 'button', class: 'small', onclick: () => act({ ready: { hop: number, ready: !ready } }) }, 'Not ready');
  const controls = h('fieldset', null, h('legend', { class: 'sr' }, `What is wrong with ${hop.name}`), low.row, high.row, curve, faults.el, breaks.el, headers, h('div', { class: 'buttons' }, reset, run, readiness), error);
  const altered = h('span', { class: 'altered' });
  const el = h('details', { class: 'adjust' }, h('summary', null, 'Adjust', h('span', { class: 'sr' }, ` ${hop.name}`), altered), controls);

  function latency() {
    const [from, to] = now();
    low.show(from);
    high.show(to);
    curve.hidden = range != null;
  }
  return {
    el,
    update(is, watchingOnly) {
      controls.disabled = Boolean(watchingOnly);
      running = is.running;
      ready = is.ready;
      say(run, running ? 'Stop this hop' : 'Start it again');
      say(readiness, ready ? 'Not ready' : 'Ready again');
      readiness.hidden = !running;
      // Not under the finger that is moving it.
      if (!timers.latency) { range = is.latency_ms; latency(); }
      const busy = timers.faults || (el.contains(document.activeElement) && document.activeElement.matches('.kind input:not([type=checkbox])'));
      const active = busy ? faults.list().length + breaks.list().length : faults.show(is.faults) + breaks.show(is.breaks);
      if (!timers.drop) for (const one of lost) one.box.checked = is.drops.includes(one.name);
      say(losing, is.drops.length ? `${is.drops.length} lost` : '');
      const bad = active > 0 || is.drops.length > 0 || !ready;
      say(altered, bad ? 'faults on' : is.latency !== first.latency ? 'changed' : '');
      altered.classList.toggle('bad', bad);
    },
  };
}
