// The demo's page as a person uses it. Run by scripts/e2e-page.sh.

import { describe, it, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createServer } from 'node:http';
import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { startDemo, startStore, startBrowser, tab, eventually, openId, sendOne, axePath } from './demo.mjs';

let chrome;
before(async () => { chrome = await startBrowser(); });
after(async () => { await chrome?.stop(); });

/** Most of the time a test waits: they are run side by side, at the end of this file. */
const tests = [];
const test = (...one) => tests.push(one);

/** A test with a demo of its own. */
function withDemo(name, flags, body) {
  test(name, { timeout: 240_000 }, async () => {
    const demo = await startDemo(...flags);
    try {
      await body(demo, chrome.browser);
    } catch (error) {
      // What its pages show now says more than what did not come.
      const pages = chrome.browser.contexts().flatMap((context) => context.pages()).filter((page) => page.url().startsWith(demo.page));
      for (const page of pages) error.message += `\n${page.url()} shows: ${await page.evaluate(() => document.body.innerText.replace(/\s+/g, ' ').slice(0, 3000)).catch(String)}`;
      throw error;
    } finally { await demo.stop(); }
  });
}

/** Where every feature works: at each width, in light and dark. */
const SIZES = [1280, 800, 390].flatMap((width) => ['light', 'dark'].map((scheme) => ({ width, scheme })));
let features = 0;

/** The sizes at which a feature is tried: all of them with EVERYWHERE=yes, else each width once, in light and dark by turns. */
function sizes() {
  features += 1;
  return process.env.EVERYWHERE === 'yes' ? SIZES : SIZES.filter((_, i) => (i + (i >> 1) + features) % 2 === 0);
}

/** A tab of that size. When it is done, nothing was wrong, nothing is wider than the window, and axe finds nothing. */
async function sized(browser, url, size) {
  const t = await tab(browser, url, { ...size, bypassCSP: true });
  return { ...t, async done() { await fits(t.page); await t.clean(); } };
}

async function fits(page) {
  const wide = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide[0] <= wide[1], `${wide[0]} wide in ${wide[1]}`);
  await axe(page);
}

async function axe(page, what = '') {
  // Colours are measured when nothing is fading any more.
  await eventually(() => page.evaluate(() => document.getAnimations().length === 0 && !document.querySelector('.lit, .lit-bad')));
  if (!(await page.evaluate(() => 'axe' in window))) await page.addScriptTag({ path: axePath });
  const { violations } = await page.evaluate(() => window.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
  assert.deepEqual(violations.map((v) => `${what} ${v.id}: ${v.nodes.slice(0, 3).map((n) => `${n.target} ${n.any[0]?.message ?? n.failureSummary}`).join(' | ')}`), []);
}

/** A feature, at every size, each with a demo of its own. `open` gives a tab of that size. */
function everywhere(name, flags, body) {
  for (const size of sizes()) withDemo(`${name}, ${size.width} ${size.scheme}`, flags, (demo, browser) => body(demo, (url = demo.page) => sized(browser, url, size), size));
}

const text = async (locator) => (await locator.innerText()).replace(/\s+/g, ' ').trim();
/** Opens the card of a hop, which stands behind its chip where a chain is a strip. Whether it is one shows when the chain has its width. */
async function openCard(page, hop) {
  const card = page.locator('.hop').nth(hop - 1);
  await page.waitForSelector('#hops[data-form]');
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  if (await page.locator('.strip .chip').count()) await page.locator('.chip').nth(hop - 1).click();
  await card.waitFor({ state: 'visible' });
  return card;
}
const figure = (page, hop, label) => page.locator('.hop').nth(hop - 1).locator('.figures > div', { hasText: label }).locator('dd').innerText();

everywhere('the chain is drawn as it is configured and its figures are live', [], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await eventually(async () => (await page.locator('.health[data-s=ready]').count()) === 3, 'three hops are ready');
  for (let n = 1; n <= 3; n++) {
    const hop = await text(await openCard(page, n));
    assert.match(hop, new RegExp(`^service${n} .*v1 · lane base · 127\\.0\\.0\\.1:\\d+`));
  }
  assert.ok((await text(page.locator('.hop').first())).includes(new URL(demo.front).host));
  // Not sampled requests count too: they leave no span, and the figures still know them.
  await page.uncheck('#sampled');
  await page.click('#ten');
  await eventually(async () => Number(await figure(page, 3, 'req/s')) >= 0.9, 'the last hop has seen them');
  assert.match(await figure(page, 1, 'p50'), /^[\d.]+ (ms|s)$/);
  assert.match(await figure(page, 1, 'p99'), /^[\d.]+ (ms|s)$/);
  assert.equal(await figure(page, 1, 'errors'), '0%');
  await t.done();
});

everywhere('a fan-out is drawn as one', ['--hops', '4', '--fan-out', 'sequential', '--latency', '1ms'], async (demo, open) => {
  const t = await open();
  await t.page.waitForSelector('.fanned .hop');
  assert.equal(await t.page.locator('.fanned .hop').count(), 3);
  assert.equal(await text(t.page.locator('#hops .how')), 'service1 calls these one after the other');
  await sendOne(t.page, 7);
  await t.page.click('#tab-headers');
  assert.equal(await t.page.locator('.edge').count(), 4);
  assert.equal(await text(t.page.locator('.edge h3').nth(3)), 'service1 → to service4');
  await t.done();
});

withDemo('a request speaks what was chosen, and the curl beside it does the same', ['--latency', '0'], async (demo, browser) => {
  const t = await tab(browser, demo.page);
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const expected = {
    nothing: [/^$/, /^x-b3-sampled$/], w3c: [/^traceparent$/], b3multi: [/^x-b3-traceid,x-b3-spanid,x-b3-sampled$/], b3: [/^b3$/],
    both: [/^traceparent,x-b3-traceid,x-b3-spanid,x-b3-sampled$/],
  };
  for (const sampled of [true, false]) {
    for (const [speaks, names] of Object.entries(expected)) {
      await page.selectOption('#speaks', speaks);
      await page.setChecked('#sampled', sampled);
      const curl = await page.innerText('#curl');
      const id = await sendOne(page, sampled ? 5 : 0);
      const exchange = await eventually(() => demo.get(`/demo/exchange/${id}`));
      const sent = exchange.sent.map(([name]) => name).join(',');
      assert.match(sent, sampled ? names[0] : names.at(-1), `${speaks}, sampled ${sampled}`);
      for (const [name, value] of exchange.sent) assert.ok(curl.includes(`${name}: ${value}`), `${curl} lacks ${name}`);
      assert.equal(exchange.reply.sampled, sampled, `${speaks}, sampled ${sampled}`);
      if (speaks !== 'nothing') assert.ok(exchange.sent.some(([, value]) => value.includes(id)), `${id} was sent`);
    }
  }
  // Lane and baggage reach the last hop; the shown curl, run in a shell, makes the trace that it names.
  await page.selectOption('#speaks', 'w3c');
  await page.check('#sampled');
  await page.fill('#lane', 'gray');
  await page.fill('#baggage', "who=o'neil");
  const curl = await page.innerText('#curl');
  const named = /traceparent: 00-([0-9a-f]{32})/.exec(curl)[1];
  const answer = execFileSync('bash', ['-c', curl], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  assert.match(answer, /x-lane: gray/);
  assert.match(answer, /baggage: who=o'neil/);
  await page.waitForSelector(`.list a[href="#/trace/${named}"]`);
  await t.context.grantPermissions(['clipboard-read', 'clipboard-write']);
  await page.click('#copy');
  await eventually(async () => (await page.innerText('#copy')) === 'Copied');
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), curl);
  // A value that no header can have is refused in words.
  await page.fill('#baggage', 'ключ=значение\u0001');
  await page.click('#one');
  await eventually(async () => /baggage/.test(await page.innerText('#sent')));
  t.wrong.splice(0, t.wrong.length, ...t.wrong.filter((line) => !/status of 400/.test(line)));
  await t.clean();
});

withDemo('ten, a hundred and without end are sent, until told to stop', ['--latency', '0'], async (demo, browser) => {
  const t = await tab(browser, demo.page);
  const { page } = t;
  const sent = async () => Number((await page.innerText('#sent')).replace(/\D.*$/, '') || 0);
  await page.waitForSelector('.rows .row');
  await page.click('#ten');
  await eventually(async () => (await page.innerText('#sent')) === '10 requests sent.');
  await page.click('#hundred');
  await eventually(async () => (await page.innerText('#sent')) === '110 requests sent.');
  await eventually(async () => (await page.innerText('#count')) === 'the newest 100');
  assert.equal(await page.locator('.list li').count(), 100);
  await page.click('#keep');
  await eventually(async () => (await sent()) >= 114);
  assert.equal(await page.getAttribute('#keep', 'aria-pressed'), 'true');
  await page.click('#keep');
  const all = async () => (await demo.get('/health')).store.traces;
  const end = await eventually(async () => { const now = await sent(); return !(await page.innerText('#sent')).includes('on the way') && now; });
  await eventually(async () => (await all()) === end + 1, 'the demo’s own first trace and every one that was sent');
  await t.clean();
});

everywhere('a request is seen travelling: hops light up and its trace is in the list, without polling', ['--latency', '20ms'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  await eventually(async () => (await page.locator('.health[data-s=ready]').count()) === 3);
  await page.evaluate(() => {
    window.lit = [];
    for (const hop of document.querySelectorAll('.hop')) new MutationObserver(() => { if (hop.classList.contains('lit')) window.lit.push(hop.getAttribute('aria-label')); }).observe(hop, { attributes: true, attributeFilter: ['class'] });
  });
  const asked = t.asked.length, shown = await openId(page);
  // Somebody else's request, by curl: the page is told of it.
  const trace = '4bf92f3577b34da6a3ce929d0e0e4736';
  await fetch(`${demo.front}/service1`, { headers: { traceparent: `00-${trace}-00f067aa0ba902b7-01` } });
  await page.waitForSelector(`.list a[href="#/trace/${trace}"]`);
  await eventually(() => page.evaluate(() => ['service1', 'service2', 'service3'].every((name) => window.lit.includes(name))), 'all three were lit');
  const order = await page.evaluate(() => [...new Set(window.lit)]);
  assert.deepEqual(order, ['service1', 'service2', 'service3']);
  // Of the trace that is open the last spans may have come in meanwhile.
  assert.deepEqual(t.asked.slice(asked).filter((url) => !url.includes(shown)), [], 'nothing was asked for: it was told');
  await t.done();
});

everywhere('a trace is opened: to scale, zoomed, walked by keyboard, downloaded, linked', ['--latency', '30ms', '--jaeger', 'http://localhost:16686', '--zipkin', 'http://127.0.0.1:9'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const id = await sendOne(page);
  const spans = await demo.get(`/api/v2/trace/${id}`);
  const start = Math.min(...spans.map((s) => s.timestamp)), end = Math.max(...spans.map((s) => s.timestamp + s.duration));
  // To scale: where each bar is and how long. The tree is named before its rows are drawn, and drawn again while spans come in.
  let bars;
  await eventually(async () => {
    bars = await page.$$eval('.rows .row', (rows) => rows.map((row) => {
      const lane = row.querySelector('.lane').getBoundingClientRect(), bar = row.querySelector('.span').getBoundingClientRect();
      return { name: row.querySelector('.sr').textContent, left: (bar.left - lane.left) / lane.width, width: bar.width / lane.width, critical: row.querySelectorAll('.crit').length };
    }));
    return bars.length === 5 && bars.every((bar) => Number.isFinite(bar.left) && bar.width > 0);
  }, 'five rows, laid out');
  const byStart = [...spans].sort((a, b) => a.timestamp - b.timestamp);
  bars.forEach((bar, i) => {
    const want = byStart[i];
    assert.ok(bar.name.startsWith(want.localEndpoint.serviceName), `${bar.name} is of ${want.localEndpoint.serviceName}`);
    assert.ok(Math.abs(bar.left - (want.timestamp - start) / (end - start)) < 0.02, `${bar.name} begins at ${bar.left}`);
    assert.ok(Math.abs(bar.width - want.duration / (end - start)) < 0.02, `${bar.name} is ${bar.width} long`);
  });
  assert.ok(bars.every((bar) => bar.critical > 0), 'in a chain everybody waits for everybody');
  // The same service has one colour, here and at its card.
  const colours = await page.evaluate(() => [...document.querySelectorAll('.rows .row')].map((row) => [row.querySelector('b').textContent, row.querySelector('.dot').dataset.c]).concat([...document.querySelectorAll('.hop')].map((hop) => [hop.getAttribute('aria-label'), hop.dataset.c])));
  for (const [name, c] of colours) assert.equal(c, new Map(colours).get(name), name);
  assert.equal(new Set(new Map(colours).values()).size, 3);
  // By keyboard: down to the last, its attributes below, fold, unfold, zoom, back.
  await page.focus('[role=tree]');
  const chosen = () => page.evaluate(() => document.querySelector(`#${document.querySelector('[role=tree]').getAttribute('aria-activedescendant')}`)?.querySelector('.sr').textContent);
  await page.keyboard.press('End');
  assert.match(await chosen(), /^service3, \/service3, server/);
  assert.match(await text(page.locator('.details')), /service3: \/service3 .*name GET \/service\{n\} .*url\.path \/service3/);
  assert.ok((await text(page.locator('.details'))).includes(byStart[4].id));
  await page.keyboard.press('Home');
  await page.keyboard.press('ArrowLeft');
  assert.equal(await page.locator('.rows .row').count(), 1);
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('.rows .row').count(), 5);
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  const width = () => page.evaluate(() => { const row = document.querySelector('.rows .on'); return row.querySelector('.span').getBoundingClientRect().width / row.querySelector('.lane').getBoundingClientRect().width; });
  // Its share of the whole, which on a busy machine may be nearly all of it: no more than the whole is ever shown.
  const share = byStart[2].duration / (end - start);
  const shows = async (what, expected) => { const now = await width(); assert.ok(Math.abs(now - expected) < 0.02, `${what}: ${now} of the lane, not ${expected}`); };
  await shows('zoomed to the span', Math.max(share, 1 / 1.2));
  await page.keyboard.press('-');
  await shows('and out again', Math.max(share, 1 / 2.4));
  await page.keyboard.press('0');
  await shows('the whole', share);
  await page.getByRole('button', { name: 'Zoom in' }).click();
  assert.ok((await width()) > share);
  await page.getByRole('button', { name: 'All: show the whole trace' }).click();
  const scale = await page.locator('.scale').boundingBox();
  await page.mouse.move(scale.x + scale.width * 0.5, scale.y + 10);
  await page.mouse.down();
  await page.mouse.move(scale.x + scale.width * 0.9, scale.y + 10, { steps: 4 });
  await page.mouse.up();
  assert.ok(!(await text(page.locator('.scale'))).startsWith('0 '), 'the scale begins later');
  // Its JSON, its link in another tab, and the others that can show it.
  const [download] = await Promise.all([page.waitForEvent('download'), page.getByRole('link', { name: 'Zipkin JSON' }).click()]);
  assert.equal(download.suggestedFilename(), `trace-${id}.json`);
  assert.deepEqual(JSON.parse(readFileSync(await download.path(), 'utf8')), spans);
  assert.equal(await page.getByRole('link', { name: 'Open in Jaeger' }).getAttribute('href'), `http://localhost:16686/trace/${id}`);
  assert.equal(await page.getByRole('link', { name: 'Open in Zipkin' }).getAttribute('href'), `http://127.0.0.1:9/zipkin/traces/${id}`);
  await sendOne(page);
  const linked = await open(`${demo.page}/#/trace/${id}/headers`);
  await linked.page.waitForSelector('.edge');
  assert.equal(await text(linked.page.locator('#about .id').first()), id);
  await linked.clean();
  // Back to the trace before, as in any page.
  await page.goBack();
  await eventually(async () => (await openId(page)) === id && (await text(page.locator('#about .id').first())) === id);
  await t.done();
});

everywhere('the headers stand side by side, ids in colours, a sentence for every change', [], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  await page.selectOption('#speaks', 'both');
  await page.fill('#baggage', 'user=ada');
  const id = await sendOne(page);
  await page.click('#tab-headers');
  const { reply } = await demo.get(`/demo/exchange/${id}`);
  const call = reply.upstreams[0], second = call.reply, third = second.upstreams[0].reply;
  const cell = (edge, name) => page.locator('.edge').nth(edge).locator(`[data-header="${name}"]`);
  const pills = async (locator) => locator.locator('.id').evaluateAll((els) => els.map((el) => [el.dataset.id, [...el.classList].filter((c) => c !== 'id').join(), el.dataset.c ?? '']));
  const sent = /-([0-9a-f]{16})-01/.exec(reply.received.traceparent[0])[1];
  assert.deepEqual(await pills(cell(0, 'traceparent')), [[id, 'trace', ''], [sent, 'call', '']]);
  assert.deepEqual(await pills(cell(1, 'traceparent')), [[id, 'trace', ''], [call.sent['x-b3-spanid'][0], 'call', '0']]);
  assert.deepEqual(await pills(cell(2, 'x-b3-spanid')), [[second.upstreams[0].sent['x-b3-spanid'][0], 'call', '1']]);
  // The parent that is sent is the caller's own span; the callee's parent is the id of the call.
  assert.deepEqual(await pills(cell(2, 'x-b3-parentspanid')), [[second.span_id, 'own', '1']]);
  assert.deepEqual(await pills(page.locator('.made').nth(2)), [[third.span_id, 'own', '2'], [third.parent_span_id, 'call', '1'], [id, 'trace', '']]);
  const badge = (edge, name) => text(cell(edge, name).locator('.badge'));
  assert.deepEqual([await badge(0, 'traceparent'), await badge(1, 'traceparent'), await badge(1, 'x-b3-traceid'), await badge(1, 'x-b3-parentspanid'), await badge(1, 'x-request-id'), await badge(2, 'x-request-id'), await badge(2, 'baggage')],
    ['sent', 'changed', 'kept', 'added', 'added', 'kept', 'kept']);
  for (const why of await page.locator('.cell:not(.absent) .why').allInnerTexts()) assert.match(why, /^[A-Za-z].*\.$/, 'a sentence');
  assert.match(await text(cell(1, 'traceparent').locator('.why')), /Same trace id\. service1 put the id of its own call in/);
  // Pointing at one id shows where else it is.
  await cell(1, 'x-b3-spanid').locator('.id').hover();
  const same = await page.locator('.id.same').evaluateAll((els) => els.map((el) => el.dataset.id));
  assert.ok(same.length >= 3 && same.every((id) => id === call.sent['x-b3-spanid'][0]), String(same));
  // What a newcomer reads: the way of the trace id, hop by hop.
  const story = await page.locator('.story li').allInnerTexts();
  assert.match(story[0], new RegExp(`You made up the trace id ${id} and sent it along\\. service1 kept it`));
  assert.match(story[2], /service2 called service3 .*service3 kept the one and took the other as the parent/s);
  await t.done();
});

everywhere('a hop that loses headers is named, and both parts of the trace are found', ['--drop-header', 'service2:traceparent', '--drop-header', 'service2:x-b3-traceid'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  assert.match(await text(page.locator('.hop').nth(1)), /loses on purpose: traceparent, x-b3-traceid/);
  const id = await sendOne(page, 4);
  assert.match(await text(page.locator('ul.wrong')), /2 services instead of 3 reported/);
  assert.match(await text(page.locator('.story')), /the trace id got lost on the way: service3 began another trace/);
  await page.click('#tab-headers');
  assert.equal(await text(page.locator('.edge').nth(2).locator('[data-header=traceparent] .badge')), 'lost');
  assert.match(await text(page.locator('.edge').nth(2).locator('[data-header=traceparent] .why')), /service2 did not pass it on: service3 cannot know which trace this is/);
  await page.getByRole('link', { name: 'See the other part' }).click();
  await eventually(async () => { const now = await openId(page); return now && now !== id; });
  await eventually(async () => /service3 began another trace/.test(await text(page.locator('.story'))), 'the same request is told');
  await t.done();
});

everywhere('sliders make a hop slow and broken while it runs, and the effect is seen', ['--latency', '1ms'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const hop = await openCard(page, 2);
  await hop.locator('.adjust > summary').click();
  await page.getByRole('slider', { name: 'service2: latency from' }).focus();
  const low = page.getByRole('slider', { name: 'service2: latency from' });
  for (let n = 0; n < 40 && (await low.getAttribute('aria-valuetext')) !== '400 ms'; n++) await page.keyboard.press('ArrowRight');
  assert.equal(await page.getByRole('slider', { name: 'service2: latency up to' }).getAttribute('aria-valuetext'), '400 ms', 'the upper goes along');
  const second = async () => { const [plan] = await page.evaluate(async () => [document.querySelectorAll('.adjust > summary .altered')[1].textContent]); return plan; };
  await eventually(async () => (await second()) === 'changed', 'the card says so');
  await eventually(async () => { const id = await sendOne(page); const spans = await demo.get(`/api/v2/trace/${id}`); return spans.find((s) => s.localEndpoint.serviceName === 'service2' && s.kind === 'SERVER').duration > 400_000; }, 'service2 takes 400 ms');
  // The store has the trace before the page has drawn it; and a busy machine adds to the 400 ms.
  await eventually(async () => /^service2, .*, server, ([4-9]\d\d ms|[\d.]+ s)/.test(await page.locator('.rows .row .sr').nth(2).textContent()), 'the waterfall says so');
  await eventually(async () => /^([4-9]\d\d ms|[\d.]+ s)$/.test(await figure(page, 2, 'p99')), 'p99 says so');
  await hop.locator('summary', { hasText: 'Faults' }).click();
  await hop.getByRole('checkbox', { name: 'service2: abort,' }).check();
  await eventually(async () => (await page.locator('.hop').nth(1).locator('.adjust > summary .altered.bad').innerText()) === 'faults on');
  await eventually(async () => { await page.click('#one'); return (await page.locator('.rows .mark').count()) >= 3; }, 'the failed spans are marked');
  await eventually(async () => /A fault struck service2: it answered 503 and called nobody/.test(await text(page.locator('.story'))), 'the story says why');
  await eventually(async () => /^service2, .*failed/.test(await page.locator('.rows .row .sr').nth(2).textContent()), 'its row is failed');
  await eventually(async () => Number((await figure(page, 2, 'errors')).replace('%', '')) > 0);
  await page.waitForSelector('.list a.bad');
  // Another page that is open sees the sliders where they are now.
  const other = await open();
  await other.page.waitForSelector('.hop', { state: 'attached' });
  const abort = other.page.getByRole('checkbox', { name: 'service2: abort,', includeHidden: true });
  await eventually(() => abort.isChecked());
  await hop.getByRole('button', { name: 'Reset' }).click();
  await eventually(async () => !(await abort.isChecked()));
  await other.clean();
  await eventually(async () => { const id = await sendOne(page, 0); const all = (await demo.get(`/demo/exchange/${id}`)); return all?.status === 200; });
  await t.done();
});

for (const size of sizes()) test(`the store alone draws what others report: attributes, events, status and links, ${size.width} ${size.scheme}`, { timeout: 240_000 }, async () => {
  const store = await startStore();
  try {
    const t = await sized(chrome.browser, store.page, size);
    const { page } = t;
    await eventually(async () => /Report spans to http:\/\/127\.0\.0\.1:\d+\/v1\/traces/.test(await text(page.locator('#list'))));
    assert.ok(await page.locator('#chain').isHidden() && await page.locator('#send').isHidden());
    const at = BigInt(Date.now()) * 1000000n, attribute = (key, stringValue) => ({ key, value: { stringValue } });
    const span = (spanId, name, kind, more) => ({ traceId: 'ab'.repeat(16), spanId, name, kind, startTimeUnixNano: String(at), endTimeUnixNano: String(at + 5000000n), ...more });
    await store.report({ resourceSpans: [{ resource: { attributes: [attribute('service.name', 'shop')] }, scopeSpans: [{ spans: [
      span('11'.repeat(8), 'GET /cart', 2, { attributes: [{ key: 'http.response.status_code', value: { intValue: '500' } }], status: { code: 2, message: 'no stock' },
        events: [{ timeUnixNano: String(at), name: 'exception' }], links: [{ traceId: 'cd'.repeat(16), spanId: '22'.repeat(8), attributes: [attribute('why', 'batch')] }] }),
    ] }] }] });
    await page.waitForSelector('.rows .row');
    const details = await text(page.locator('.details'));
    for (const part of ['http.response.status_code 500', 'status failed: no stock', 'exception', `span ${'22'.repeat(8)} of trace ${'cd'.repeat(16)}`, 'why: batch']) assert.ok(details.includes(part), `${part} in ${details}`);
    assert.match(await text(page.locator('ul.wrong')), /The request failed with 500: shop answered 500\./);
    await t.done();
  } finally { await store.stop(); }
});

everywhere('before the first trace the page says what will be seen', ['--fault', 'service1:delay=50s@100%'], async (demo, open) => {
  const t = await open();
  await t.page.waitForSelector('.hop');
  assert.match(await text(t.page.locator('#list')), /No traces yet\. Send a request above, or with curl/);
  assert.match(await text(t.page.locator('#about')), /Nothing to see yet\. Press “Send one”/);
  assert.ok(await t.page.locator('.tabs').isHidden());
  await t.done();
});

everywhere('a hop that is down, a trace with an orphan, a trace that is gone and a demo that has ended say what they mean', ['--latency', '0'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const hop = await openCard(page, 3);
  await hop.locator('.adjust > summary').click();
  await hop.getByRole('button', { name: 'Stop this hop' }).click();
  await eventually(async () => (await text(hop.locator('.health'))) === 'stopped');
  await sendOne(page, 4);
  assert.match(await text(page.locator('.story')), /service2 called service3, and got no reply: cannot connect/);
  await page.click('#tab-headers');
  assert.match(await text(page.locator('.made').nth(2)), /No reply from service3: cannot connect/);
  await page.click('#tab-time');
  await hop.getByRole('button', { name: 'Start it again' }).click();
  await eventually(async () => (await text(hop.locator('.health'))).includes('ready'));
  await eventually(async () => { const id = await sendOne(page, 0); return (await demo.get(`/demo/exchange/${id}`))?.status === 200; });
  // An orphan.
  const span = (id, parentId, serviceName) => ({ traceId: 'c0ffee', id, parentId, kind: 'SERVER', name: 'work', timestamp: Date.now() * 1000, duration: 1000, localEndpoint: { serviceName } });
  await demo.report([span('1', undefined, 'shop'), span('2', '9', 'stock')]);
  await page.click('.list a[href="#/trace/0000000000c0ffee"]');
  await eventually(async () => /Span 0000000000000002 of stock server work names the parent 0000000000000009, but nobody reported that one/.test(await text(page.locator('ul.wrong'))));
  assert.equal(await page.locator('.rows .mark').innerText(), '?');
  await page.click('#tab-headers');
  assert.match(await text(page.locator('#view-headers')), /Nobody kept the headers of this request/);
  // One that is not there.
  await page.evaluate(() => { location.hash = '#/trace/dead'; });
  await eventually(async () => /No spans of this trace are here/.test(await text(page.locator('#trace'))));
  // The demo ends while the page is open.
  await demo.stop();
  await eventually(async () => /The demo does not answer/.test(await page.innerText('#state')));
  await fits(page);
  // It asks again and again.
  t.wrong.splice(0, t.wrong.length, ...t.wrong.filter((line) => !/ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET/.test(line)));
  await t.clean();
});

withDemo('hostile names, tags and header values are shown as text and do nothing', ['--latency', '0'], async (demo, browser) => {
  const t = await tab(browser, demo.page);
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const evil = '<img src=x onerror="window.struck=1"><script>window.struck=1</script>';
  const spoof = 'safe\u202etxt.exe\u0007\u001b[31m';
  await demo.report([{
    traceId: 'bad', id: '1', kind: 'SERVER', name: evil, timestamp: Date.now() * 1000, duration: 1e6, localEndpoint: { serviceName: `"><svg onload=window.struck=1>${spoof}` },
    remoteEndpoint: { serviceName: evil }, tags: { [evil]: evil, 'javascript:window.struck=1': 'javascript:window.struck=1', error: evil, long: 'x'.repeat(50_000) }, annotations: [{ timestamp: 1, value: evil }],
  }, { traceId: 'bad', id: '2', parentId: '1', name: '__proto__', timestamp: 8e15, duration: 8e15, localEndpoint: { serviceName: 'constructor' }, tags: { __proto__: 'x' } }]);
  await page.click('.list a[href="#/trace/0000000000000bad"]');
  await eventually(async () => (await text(page.locator('.details'))).includes('<img src=x onerror='), 'it is shown as what it is');
  assert.ok((await page.innerText('.details')).includes('\\u202e'), 'what turns text around is made visible');
  await page.click('#tab-headers');
  // And in a header, there and back through three hops.
  await page.fill('#baggage', evil);
  await page.fill('#lane', '"><b>lane</b>');
  await page.selectOption('#speaks', 'w3c');
  await sendOne(page, 0);
  await eventually(async () => (await text(page.locator('.edge').nth(2).locator('[data-header=baggage]'))).includes(evil));
  for (const selector of ['main img', 'main script', 'main svg', '.value b', '#trace b:text("lane")']) assert.equal(await page.locator(selector).count(), 0, selector);
  assert.equal(await page.evaluate(() => window.struck), undefined);
  // The browser itself refuses to make HTML of a text in this page.
  assert.equal(await page.evaluate(() => { try { document.body.innerHTML = 'x'; return 'made'; } catch { return 'refused'; } }), 'refused');
  t.wrong.splice(0, t.wrong.length, ...t.wrong.filter((line) => !/TrustedHTML/.test(line)));
  await t.clean();
});

withDemo('a page of another site and a name that was pointed here give no orders', ['--latency', '0'], async (demo, browser) => {
  const port = new URL(demo.page).port;
  const passed = async () => (await demo.get('/health')).store.traces;
  await eventually(async () => (await passed()) === 1);
  const site = createServer((_, response) => response.setHeader('content-type', 'text/html').end('<!doctype html><title>another site</title>'));
  await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
  const rebound = await startBrowser(`MAP evil.example 127.0.0.1`);
  try {
    const t = await tab(browser, `http://127.0.0.1:${site.address().port}/`);
    const answers = await t.page.evaluate(async (url) => {
      const body = JSON.stringify({ send: { headers: [] } });
      const attempt = async (options) => { try { const a = await fetch(`${url}/demo/control`, { method: 'POST', body, ...options }); return a.type === 'opaque' ? 'opaque' : a.status; } catch { return 'blocked'; } };
      const stream = await new Promise((resolve) => { const s = new EventSource(`${url}/demo/events`); s.onerror = () => resolve('blocked'); s.onmessage = () => resolve('read'); s.addEventListener('chain', () => resolve('read')); });
      return [await attempt({ headers: { 'content-type': 'application/json' } }), await attempt({}), await attempt({ mode: 'no-cors' }), navigator.sendBeacon(`${url}/demo/control`, new Blob([body], { type: 'text/plain' })), stream];
    }, demo.page);
    assert.deepEqual(answers, ['blocked', 'blocked', 'blocked', true, 'blocked']);
    await t.context.close();
    const u = await tab(rebound.browser, `http://evil.example:${port}/`);
    assert.match(await u.page.innerText('body'), /the Host header is not a name of this store/);
    const read = (path) => u.page.evaluate(async (path) => (await fetch(path)).status, path);
    for (const path of ['/api/v2/traces', '/demo/events', '/page/main.js']) assert.equal(await read(path), 403, path);
    await u.context.close();
    // What our own page orders next is the only thing that happened.
    const own = await tab(browser, demo.page);
    await own.page.waitForSelector('.rows .row');
    await sendOne(own.page);
    await own.clean();
    assert.equal(await passed(), 2);
  } finally {
    site.close();
    await rebound.stop();
  }
});

withDemo('under a foreign name and from another machine, the key opens the page and lets it send', ['--latency', '0', '--listen', '0.0.0.0'], async (demo) => {
  const named = await startBrowser('MAP demo.example 127.0.0.1');
  try {
    const at = `http://demo.example:${new URL(demo.page).port}/`;
    const t = await tab(named.browser, `${at}?key=${demo.key}`);
    await t.page.waitForSelector('.rows .row');
    assert.equal(t.page.url().split('#')[0], at, 'the key is not in the address any more');
    assert.equal(await t.page.evaluate(() => document.cookie), '', 'no script reads it');
    assert.ok(await t.page.locator('#notice').isHidden());
    await sendOne(t.page);
    await t.clean();
    const without = await tab(named.browser, at);
    assert.match(await without.page.innerText('body'), /open the page by the URL that was printed/);
    await without.context.close();
  } finally { await named.stop(); }
});

withDemo('a trace of 1,000 spans stays light: few elements, short work for a scroll, every span reached', ['--latency', '0'], async (demo, browser) => {
  const t = await tab(browser, demo.page);
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const at = Date.now() * 1000;
  const spans = Array.from({ length: 1000 }, (_, i) => ({
    traceId: 'f00d', id: (i + 1).toString(16), parentId: i ? (Math.floor((i - 1) / 3) + 1).toString(16) : undefined, kind: i % 2 ? 'CLIENT' : 'SERVER', name: `step ${i}`,
    timestamp: at + i * 10, duration: 20_000 - i * 10, localEndpoint: { serviceName: `shop${i % 10}` }, tags: { n: String(i) },
  }));
  await demo.report(spans);
  await page.click('.list a[href="#/trace/000000000000f00d"]');
  await eventually(async () => (await page.getAttribute('[role=tree]', 'aria-label')).endsWith(' 1000'));
  const rows = () => page.locator('.rows .row').count();
  assert.ok((await rows()) < 80, `${await rows()} rows are elements`);
  const cdp = await t.context.newCDPSession(page);
  await cdp.send('Performance.enable', { timeDomain: 'threadTicks' });
  const work = async () => { const m = Object.fromEntries((await cdp.send('Performance.getMetrics')).metrics.map(({ name, value }) => [name, value])); return (m.ScriptDuration + m.LayoutDuration + m.RecalcStyleDuration) * 1000; };
  const before = await work();
  const steps = await page.evaluate(async () => {
    const tree = document.querySelector('[role=tree]');
    let steps = 0;
    for (; tree.scrollTop < tree.scrollHeight - tree.clientHeight - 1 && steps < 2000; steps++) {
      tree.scrollTop += 100;
      await new Promise(requestAnimationFrame);
    }
    return steps;
  });
  const each = (await work()) - before;
  assert.ok(steps > 200, `${steps} steps`);
  console.log(`1,000 spans: ${(each / steps).toFixed(2)} ms of work for each step of a scroll, ${await rows()} rows are elements`);
  assert.ok(each / steps < 16, `${each / steps} ms for each step`);
  assert.ok((await rows()) < 80);
  await page.focus('[role=tree]');
  await page.keyboard.press('Home');
  await page.keyboard.press('End');
  assert.equal(await page.locator('.rows .on').getAttribute('aria-posinset'), '1000');
  await t.clean();
});

// --- the second edition

const curl = (demo, path = '/service1', headers = {}) => fetch(`${demo.front}${path}`, { headers });

everywhere('the headers and the answer of a request by curl are kept, and of the demo’s own first one', ['--latency', '0'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  // The one that the demo sent itself.
  await page.click('#tab-headers');
  assert.match(await text(page.locator('.edge h3').first()), /^The demo → to service1$/);
  assert.equal(await page.locator('.edge').count(), 3);
  // Somebody's, as text.
  const id = '4bf92f3577b34da6a3ce929d0e0e4736';
  const body = await (await curl(demo, '/service1', { traceparent: `00-${id}-00f067aa0ba902b7-01`, baggage: 'user=eve', accept: '*/*' })).text();
  await page.click(`.list a[href="#/trace/${id}"]`);
  await page.click('#tab-headers');
  await eventually(async () => (await page.locator('.edge').count()) === 3);
  assert.match(await text(page.locator('.edge h3').first()), /^The caller → to service1$/);
  assert.match(await text(page.locator('.edge').nth(2).locator('[data-header=baggage]')), /kept user=eve/);
  await page.click('#tab-answer');
  await eventually(async () => (await page.locator('.body-raw pre').textContent()) === body, 'the raw body is what curl got');
  assert.match(await text(page.locator('.body-tree')), /service1 v1, 200.*service2 v1, 200.*service3 v1, 200/);
  assert.match(await text(page.locator('#view-answer')), /The caller asked for text/);
  // Off the chain: a greeting is a whole trace, and its headers are here, too.
  const other = '5bf92f3577b34da6a3ce929d0e0e4736';
  const hello = await (await curl(demo, '/hello', { traceparent: `00-${other}-00f067aa0ba902b7-01`, 'x-lane': 'gray' })).text();
  await page.click(`.list a[href="#/trace/${other}"]`);
  await eventually(async () => (await text(page.locator('#about .id').first())) === other && (await page.locator('.rows .row').count()) === 1);
  assert.equal(await page.locator('ul.wrong').count(), 0, 'nothing is wrong with it');
  await page.click('#tab-answer');
  await eventually(async () => (await page.locator('.body-raw pre').textContent()) === hello);
  await page.click('#tab-headers');
  assert.match(await text(page.locator('.edge').first()), /x-lane sent gray .*service1 answered 200\. \/hello calls no other service/);
  // And one that enters in the middle of the chain.
  const middle = '6bf92f3577b34da6a3ce929d0e0e4736';
  const second = (await text(page.locator('.hop').nth(1).locator('.label'))).split(' · ').pop();
  await fetch(`http://${second}/service2`, { headers: { traceparent: `00-${middle}-00f067aa0ba902b7-01` } });
  await page.click(`.list a[href="#/trace/${middle}"]`);
  await page.click('#tab-headers');
  await eventually(async () => (await page.locator('.edge').count()) === 2);
  assert.equal(await page.locator('ul.wrong').count(), 0, 'two services are all that it asked for');
  await t.done();
});

for (const [what, flags, from, to, header, sentence] of [
  ['the context', ['--drop-header', 'service2:traceparent', '--drop-header', 'service2:x-b3-traceid'], 2, 3, /✕? ?traceparent.*x-b3-traceid/, /Trace broke between service2 and service3: service2 received traceparent and x-b3-traceid and did not send them/],
  ['what it made itself', ['--drop-header', 'service1:traceparent', '--drop-header', 'service1:x-b3-traceid'], 1, 2, /traceparent/, /Trace broke between service1 and service2/],
]) {
  everywhere(`the arrow is red where a hop loses ${what}, and the verdict says it`, ['--latency', '0', ...flags], async (demo, open, { scheme }) => {
    const t = await open();
    const { page } = t;
    await page.waitForSelector('.rows .row');
    await page.click('#one');
    await eventually(async () => (await page.locator('.way.broken').count()) === 1, 'one arrow is broken');
    const lost = await text(page.locator('.way.broken'));
    assert.match(lost, new RegExp(`between service${from} and service${to}`));
    assert.match(lost, header);
    const colour = await page.locator('.way.broken .lack').evaluate((el) => getComputedStyle(el).color);
    assert.equal(colour, { light: 'rgb(179, 32, 44)', dark: 'rgb(255, 143, 146)' }[scheme]);
    await eventually(async () => sentence.test(await text(page.locator('ul.wrong'))), 'the sentence');
    assert.doesNotMatch(await text(page.locator('ul.wrong')), /on the way/);
    await t.done();
  });
}

everywhere('a header that is lost beside a trace that goes on is no break, and one that an error explains is no mystery', ['--hops', '5', '--latency', '0', '--drop-header', 'service1:baggage', '--fault', 'service3:abort=503@100%'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  await page.fill('#baggage', 'user=ada');
  await page.click('#one');
  await eventually(async () => /service3 answered 503, by its injected fault; so service4 and service5 were never called\./.test(await text(page.locator('ul.wrong'))));
  assert.match(await text(page.locator('.way.lossy')), /lost between service1 and service2: .*baggage/);
  assert.equal(await page.locator('.way.broken').count(), 0);
  // The same of a request that somebody else sent.
  const id = '4bf92f3577b34da6a3ce929d0e0e4736';
  await curl(demo, '/service1', { traceparent: `00-${id}-00f067aa0ba902b7-01` });
  await page.click(`.list a[href="#/trace/${id}"]`);
  await eventually(async () => /The request failed with 502: service3 answered 503, by its injected fault; so service4 and service5 were never called\./.test(await text(page.locator('ul.wrong'))));
  assert.doesNotMatch(await text(page.locator('ul.wrong')), /on the way|do not report/);
  await t.done();
});

everywhere('ten hops are a compact strip; a hop’s card opens below it', ['--hops', '10', '--latency', '0', '--drop-header', 'service4:traceparent', '--drop-header', 'service4:x-b3-traceid'], async (demo, open, { width }) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  assert.equal(await page.locator('.strip .chip').count(), 10);
  const places = await page.$$eval('.strip .chip', (chips) => chips.map((chip) => { const { x, y, width } = chip.getBoundingClientRect(); return { x, y, width }; }));
  const rows = new Map();
  for (const { x, y } of places) rows.set(Math.round(y), [...(rows.get(Math.round(y)) ?? []), Math.round(x)]);
  if (width === 1280) assert.equal(rows.size, 1, 'all ten in one row');
  const widths = places.map((place) => Math.round(place.width));
  assert.ok(Math.max(...widths) - Math.min(...widths) <= 2, `one width: ${widths}`);
  await page.click('#one');
  await eventually(async () => (await page.locator('.way.broken').count()) === 1);
  assert.match(await text(page.locator('.way.broken')), /between service4 and service5/);
  await page.locator('.chip', { hasText: 'service7' }).click();
  assert.equal(await page.locator('.opened .hop:visible').count(), 1);
  assert.equal(await page.locator('.opened .hop:visible h3').innerText(), 'service7');
  assert.ok(await page.locator('.opened .hop:visible .adjust > summary').isVisible());
  await t.done();
});

everywhere('fifty hops: the timeline says what is outside, indents go on, and so do colours', ['--hops', '50', '--latency', '0'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  await eventually(async () => (await page.getAttribute('[role=tree]', 'aria-label')).endsWith(' 99'));
  assert.match(await text(page.locator('.beyond').last()), /^▾ \d+ more spans below$/);
  assert.match(await text(page.locator('.beyond').first()), /^the first span$/);
  const indents = await page.$$eval('.rows .name', (names) => names.map((name) => parseFloat(name.style.paddingLeft)));
  assert.ok(indents.every((indent, i) => !i || indent > indents[i - 1]), String(indents));
  await page.locator('.beyond').last().click();
  await eventually(async () => /more spans? above/.test(await text(page.locator('.beyond').first())));
  await page.focus('[role=tree]');
  await page.keyboard.press('End');
  await eventually(async () => (await text(page.locator('.beyond').last())) === 'the last span');
  const last = await page.locator('.rows .on .name').evaluate((el) => parseFloat(el.style.paddingLeft));
  assert.ok(last > Math.max(...indents), `${last}: deeper than ${Math.max(...indents)}`);
  const label = await page.locator('.rows .on .name').innerText();
  assert.match(label, /service50\s*\/service50/);
  assert.doesNotMatch(label, /\{n\}/);
  const colours = await page.$$eval('.chip', (chips) => chips.map((chip) => getComputedStyle(chip).borderTopColor));
  assert.ok(new Set(colours).size >= 45, `${new Set(colours).size} colours of 50`);
  await t.done();
});

everywhere('a fan-out is a tree: every call hangs below service1', ['--hops', '6', '--fan-out', 'parallel', '--latency', '0', '--drop-header', 'service1:x-lane'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const root = await page.locator('.tree-root .hop').boundingBox();
  const places = await page.$$eval('.branch .hop', (hops) => hops.map((hop) => { const { x, y } = hop.getBoundingClientRect(); return [Math.round(x), Math.round(y)]; }));
  assert.equal(places.length, 5);
  assert.ok(places.every(([x, y], i) => x === places[0][0] && y > root.y + root.height && (!i || y > places[i - 1][1])), JSON.stringify(places));
  await page.fill('#lane', 'gray');
  await page.click('#one');
  await eventually(async () => (await page.locator('.branch .way.lossy').count()) === 5, 'each of the five lacks the lane');
  await t.done();
});

everywhere('the list shows the status, is filtered, and groups what one request became', ['--latency', '0', '--drop-header', 'service2:traceparent', '--drop-header', 'service2:x-b3-traceid', '--fault', 'service1:abort=503@50%'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  await eventually(async () => { await page.click('#ten'); return (await page.locator('.list .status.bad').count()) > 0 && (await page.locator('.list .grouped').count()) > 0; });
  await eventually(async () => !/on the way/.test(await page.innerText('#sent')));
  const group = page.locator('.list .grouped.first').first();
  assert.match(await text(group.locator('.group')), /^One request, 2 traces/);
  const shown = () => page.$$eval('.list li', (items) => items.map((item) => ({ text: item.innerText, status: item.querySelector('.status')?.lastChild.textContent, dots: item.querySelectorAll('.dot').length })));
  await page.selectOption('#by-status', '5');
  await eventually(async () => (await shown()).every((item) => item.status === '503') && (await shown()).length > 0);
  assert.match(await page.innerText('#count'), /^\d+ of \d+$/);
  await page.selectOption('#by-status', '');
  await page.check('#by-errors');
  await eventually(async () => (await shown()).every((item) => item.status === '503') && (await shown()).length > 0);
  await page.uncheck('#by-errors');
  await page.selectOption('#by-service', 'service3');
  await eventually(async () => (await shown()).every((item) => item.text.includes('/service3')) && (await shown()).length > 0);
  await page.selectOption('#by-service', '');
  await page.fill('#by-duration', '3600000');
  await eventually(async () => /No trace passes the filter/.test(await text(page.locator('#list'))));
  await page.fill('#by-duration', '');
  await eventually(async () => (await shown()).length > 10);
  await t.done();
});

everywhere('two traces are compared side by side', ['--latency', '0'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const first = await sendOne(page);
  const [a, b] = ['4bf92f3577b34da6a3ce929d0e0e47', '5bf92f3577b34da6a3ce929d0e0e47'].map((id) => `${id}36`);
  const span = (trace, id, parentId, kind, serviceName, path, at, ms, status) => ({ traceId: trace, id, parentId, kind, name: 'GET', timestamp: Date.now() * 1000 + at * 1000, duration: ms * 1000, localEndpoint: { serviceName }, tags: { 'url.path': path, 'http.response.status_code': String(status), ...(status >= 500 ? { error: 'x' } : {}) } });
  await demo.report([span(a, '1', undefined, 'SERVER', 'shop', '/buy', 0, 20, 200), span(a, '2', '1', 'SERVER', 'stock', '/take', 5, 10, 200)]);
  await demo.report([span(b, '1', undefined, 'SERVER', 'shop', '/buy', 0, 90, 502), span(b, '2', '1', 'SERVER', 'stock', '/take', 5, 80, 503), span(b, '3', '1', 'SERVER', 'mail', '/send', 6, 3, 200)]);
  await page.click(`.list a[href="#/trace/${a}"]`);
  await eventually(async () => (await text(page.locator('#about .id').first())) === a);
  await page.getByRole('button', { name: 'Compare' }).click();
  assert.match(await text(page.locator('#picking')), /Choose the trace to compare with 4bf92f35/);
  await page.click(`.list a[href="#/compare/${a}/${b}"]`);
  await page.waitForSelector('.two-table');
  const rows = await page.$$eval('.two-table tbody tr', (trs) => trs.map((tr) => [...tr.children].slice(0, 4).map((cell) => cell.innerText.trim().replace(/\s+/g, ' '))));
  assert.deepEqual(rows, [['shop /buy', '20.0 ms', '90.0 ms failed', '+70.0 ms'], ['stock /take', '10.0 ms', '80.0 ms failed', '+70.0 ms'], ['mail /send', '–', '3.00 ms', 'only in B']]);
  assert.match(await text(page.locator('.two-side').nth(1)), /stock answered 503/);
  await page.getByRole('link', { name: 'Back to the trace' }).click();
  await eventually(async () => (await text(page.locator('#about .id').first())) === a && page.locator('.tabs').isVisible());
  assert.ok(first);
  await t.done();
});

everywhere('figures keep their last value in grey, and a failed send marks what is shown as stale', ['--latency', '0'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  await openCard(page, 1);
  await sendOne(page);
  await eventually(async () => /ms/.test(await figure(page, 1, 'p50')));
  const p50 = page.locator('.hop').first().locator('.figures > div', { hasText: 'p50' }).locator('dd');
  await eventually(async () => (await p50.getAttribute('class'))?.includes('old') && /ms/.test(await p50.innerText()), 'idle: the last value, grey');
  // The first hop is stopped: there is no answer, and what is shown is older.
  const shown = await openId(page);
  await page.locator('.hop').first().locator('.adjust > summary').click();
  await page.getByRole('button', { name: 'Stop this hop' }).click();
  await eventually(async () => (await text(page.locator('.health').first())) === 'stopped');
  await page.click('#one');
  await eventually(async () => /The last request failed: service1: .*\. What is shown here is of an earlier one\./.test(await text(page.locator('#stale'))));
  assert.equal(await openId(page), shown);
  await page.getByRole('button', { name: 'Start it again' }).click();
  await eventually(async () => (await text(page.locator('.health').first())).includes('ready'));
  await sendOne(page);
  assert.ok(await page.locator('#stale').isHidden());
  await t.done();
});

everywhere('a trace id that three requests used: each of them can be chosen', ['--latency', '0'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const id = '463ac35c9f6413ad48485a3953bb6124';
  for (const lane of ['one', 'two', 'three']) await curl(demo, '/service1', { b3: `${id}-a2fb4a1d1a96d312-1`, 'x-lane': lane });
  await page.click(`.list a[href="#/trace/${id}"]`);
  await eventually(async () => (await page.getAttribute('[role=tree]', 'aria-label')).endsWith(' 15'));
  assert.match(await text(page.locator('.used-by')), /^3 requests used this id\. Show /);
  assert.equal(await page.locator('ul.wrong').count(), 0);
  assert.equal(await page.locator('.rows .mark').count(), 0);
  assert.doesNotMatch(await text(page.locator(`.list a[href="#/trace/${id}"]`)), /in pieces/);
  await page.click('#tab-headers');
  for (const [at, lane] of [[0, 'one'], [1, 'two'], [2, 'three']]) {
    await page.locator('.used-by a').nth(at).click();
    await eventually(async () => (await text(page.locator('.edge').nth(2).locator('[data-header=x-lane]'))).includes(lane), lane);
  }
  await page.click('#tab-time');
  await eventually(async () => (await page.getAttribute('[role=tree]', 'aria-label')).endsWith(' 5'));
  assert.match(await text(page.locator('.wrong.calm')), /The first span hangs below a2fb4a1d1a96d312, the id that the caller sent along/);
  await t.done();
});

for (const size of sizes()) test(`in a container’s place: from another address one may only watch without the key, and send with it, ${size.width} ${size.scheme}`, { timeout: 240_000 }, async (context) => {
  const outside = Object.values(networkInterfaces()).flat().find((at) => at.family === 'IPv4' && !at.internal)?.address;
  if (!outside) return context.skip('this machine has no address but loopback');
  const demo = await startDemo('--listen', '0.0.0.0', '--latency', '0');
  try {
    const there = demo.page.replace(/\/\/[^:]+/, `//${outside}`);
    const watching = await sized(chrome.browser, there, size);
    await watching.page.waitForSelector('.hop');
    assert.match(await text(watching.page.locator('#notice')), /You are watching only/);
    assert.ok(await watching.page.locator('#one').isDisabled());
    await watching.done();
    const t = await sized(chrome.browser, `${there}/?key=${demo.key}`, size);
    await t.page.waitForSelector('.rows .row');
    assert.ok(await t.page.locator('#notice').isHidden());
    assert.ok(!t.page.url().includes(demo.key), 'the key leaves the address');
    await sendOne(t.page);
    await t.done();
  } finally { await demo.stop(); }
});

withDemo('every fault and break that the program knows can be set at a card, and what it does is seen', ['--latency', '0'], async (demo, browser) => {
  const t = await tab(browser, demo.page);
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const chain = await page.evaluate(() => new Promise((resolve) => { const s = new EventSource('/demo/events'); s.addEventListener('chain', (event) => { s.close(); resolve(JSON.parse(event.data)); }); }));
  const hop = page.locator('.hop').nth(1);
  await hop.locator('.adjust > summary').click();
  for (const title of ['Faults', 'Broken traces', 'Lost headers']) await hop.locator('summary', { hasText: title }).click();
  for (const { name } of [...chain.fault_kinds, ...chain.break_kinds]) assert.equal(await hop.getByRole('checkbox', { name: `service2: ${name},` }).count(), 1, name);
  for (const name of chain.carried) assert.equal(await hop.getByRole('checkbox', { name: `service2: lose ${name}`, exact: true }).count(), 1, name);
  // A status of one's own at a rate of one's own, and beside it another fault.
  await hop.getByRole('textbox', { name: 'service2: value of abort' }).fill('429');
  await hop.getByRole('checkbox', { name: 'service2: abort,' }).check();
  await eventually(async () => /faults: abort=429/.test(await text(hop.locator('.drops'))));
  await page.click('#one');
  await eventually(async () => /service2 answered 429, by its injected fault; so service3 was never called\./.test(await text(page.locator('ul.wrong'))));
  await hop.getByRole('spinbutton', { name: 'service2: rate in percent of abort' }).fill('7');
  await eventually(async () => /faults: abort=429@7%/.test(await text(hop.locator('.drops'))));
  await hop.getByRole('checkbox', { name: 'service2: abort,' }).uncheck();
  await eventually(async () => hop.locator('.drops').isHidden());
  // What cannot be is refused in words.
  await hop.getByRole('textbox', { name: 'service2: value of abort' }).fill('200');
  await hop.getByRole('checkbox', { name: 'service2: abort,' }).check();
  await eventually(async () => /200/.test(await text(hop.locator('.refused'))), 'the refusal names the value');
  await hop.getByRole('checkbox', { name: 'service2: abort,' }).uncheck();
  await eventually(async () => hop.locator('.refused').isHidden());
  // Each way to break a trace is seen at the arrow behind the hop.
  await page.selectOption('#speaks', 'both');
  for (const [kind, mark] of [['new-trace', 'broken'], ['stale-parent', 'broken'], ['flip-sampled', 'lossy'], ['w3c-only', 'lossy'], ['new-request-id', 'lossy']]) {
    const box = hop.getByRole('checkbox', { name: `service2: ${kind},` });
    await box.check();
    await eventually(async () => new RegExp(`breaks: ${kind}`).test(await text(hop.locator('.drops'))));
    await page.click('#one');
    await eventually(async () => (await page.locator('.step').nth(3).locator(`.way.${mark}`).count()) === 1, `${kind} is ${mark}`);
    await box.uncheck();
    await eventually(async () => hop.locator('.drops').isHidden());
    await page.click('#one');
    await eventually(async () => (await page.locator('.way:is(.broken, .lossy)').count()) === 0, `after ${kind}`);
  }
  // A header is lost, and comes back.
  await page.fill('#baggage', 'user=ada');
  await hop.getByRole('checkbox', { name: 'service2: lose baggage', exact: true }).check();
  await eventually(async () => /loses on purpose: baggage/.test(await text(hop.locator('.drops'))));
  await page.click('#one');
  await eventually(async () => /baggage/.test(await text(page.locator('.way.lossy'))));
  await hop.getByRole('button', { name: 'Reset' }).click();
  await eventually(async () => hop.locator('.drops').isHidden());
  // Not ready is what it says to whoever asks; it goes on serving.
  await hop.getByRole('button', { name: 'Not ready' }).click();
  await eventually(async () => (await text(hop.locator('.health'))) === 'not ready by order');
  await sendOne(page);
  await hop.getByRole('button', { name: 'Ready again' }).click();
  await eventually(async () => (await text(hop.locator('.health'))).includes('ready') && !(await text(hop.locator('.health'))).includes('not'));
  t.wrong.splice(0, t.wrong.length, ...t.wrong.filter((line) => !/status of 400/.test(line)));
  await t.clean();
});

everywhere('a hop is broken and mended at its card: a fault, a break, a lost header, not ready, stopped', ['--latency', '0'], async (demo, open) => {
  const t = await open();
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const hop = await openCard(page, 2);
  await hop.locator('.adjust > summary').click();
  for (const title of ['Faults', 'Broken traces', 'Lost headers']) await hop.locator('summary', { hasText: title }).click();
  const says = (pattern) => eventually(async () => pattern.test(await text(page.locator('ul.wrong'))), String(pattern));
  await hop.getByRole('checkbox', { name: 'service2: abort,' }).check();
  await eventually(async () => /faults: abort=503/.test(await text(hop.locator('.drops'))));
  await page.click('#one');
  await says(/service2 answered 503, by its injected fault; so service3 was never called\./);
  await hop.getByRole('checkbox', { name: 'service2: abort,' }).uncheck();
  await eventually(async () => hop.locator('.drops').isHidden());
  await page.selectOption('#speaks', 'both');
  await hop.getByRole('checkbox', { name: 'service2: new-trace,' }).check();
  await eventually(async () => /breaks: new-trace/.test(await text(hop.locator('.drops'))));
  await page.click('#one');
  await eventually(async () => (await page.locator('.way.broken').count()) === 1, 'the arrow is red');
  await hop.getByRole('checkbox', { name: 'service2: new-trace,' }).uncheck();
  await page.fill('#baggage', 'user=ada');
  await hop.getByRole('checkbox', { name: 'service2: lose baggage', exact: true }).check();
  await eventually(async () => /loses on purpose: baggage/.test(await text(hop.locator('.drops'))));
  await page.click('#one');
  await eventually(async () => /baggage/.test(await text(page.locator('.way.lossy'))));
  await hop.getByRole('button', { name: 'Not ready' }).click();
  await eventually(async () => (await text(hop.locator('.health'))) === 'not ready by order');
  await hop.getByRole('button', { name: 'Stop this hop' }).click();
  await eventually(async () => (await text(hop.locator('.health'))) === 'stopped');
  await page.click('#one');
  await says(/service2/);
  await t.done();
});

withDemo('at 390 pixels the name stands above its bar, and the trace right after “Send”', ['--latency', '5ms'], async (demo, browser) => {
  const t = await tab(browser, demo.page, { width: 390 });
  const { page } = t;
  await page.waitForSelector('.rows .row');
  const place = async (selector) => page.locator(selector).first().boundingBox();
  const [name, bar, send, trace, traces] = [await place('.rows .name'), await place('.rows .lane .span'), await place('#send'), await place('#trace'), await place('#traces')];
  assert.ok(name.y + name.height <= bar.y + 1, `${JSON.stringify(name)} ${JSON.stringify(bar)}`);
  assert.ok(send.y + send.height <= trace.y && trace.y + trace.height <= traces.y);
  await t.clean();
});

for (const scheme of ['light', 'dark']) {
  for (const width of [390, 800, 1280, 2560]) {
    withDemo(`the page fits ${width} pixels in ${scheme}, does not jump, and axe finds nothing`, ['--fault', 'service3:abort=503@50%', '--drop-header', 'service2:baggage'], async (demo, browser) => {
      const t = await tab(browser, demo.page, { width, scheme, bypassCSP: true });
      const { page } = t;
      await page.waitForSelector('.rows .row');
      await eventually(async () => (await page.locator('.health[data-s=ready]').count()) === 3);
      const paper = await page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
      assert.ok(scheme === 'dark' ? paper[0] < 60 : paper[0] > 200, String(paper));
      const shifts = await page.evaluate(() => window.shifts);
      assert.ok(shifts.reduce((sum, shift) => sum + shift.value, 0) < 0.1, JSON.stringify(shifts));
      await page.click('#ten');
      await eventually(async () => /10 requests sent/.test(await page.innerText('#sent')));
      await page.fill('#baggage', 'user=ada');
      await page.selectOption('#speaks', 'both');
      await sendOne(page, 0);
      for (const view of ['time', 'headers', 'answer', 'compare']) {
        if (view === 'compare') {
          await page.getByRole('button', { name: 'Compare' }).click();
          await page.locator('.list a[href^="#/compare/"]').first().click();
        } else await page.click(`#tab-${view}`);
        await page.waitForSelector({ time: '.rows .row', headers: '.edge', answer: '.body-tree .of-hop', compare: '.two-table tr' }[view]);
        await page.locator('.hop').first().evaluate((el) => { for (const one of el.querySelectorAll('details')) one.open = true; });
        const wide = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
        assert.ok(wide[0] <= wide[1], `${view}: ${wide[0]} wide in ${wide[1]}`);
        await axe(page, view);
      }
      await t.clean();
    });
  }
}

describe('the page', { concurrency: 3 }, () => {
  for (const one of tests) it(...one);
});
