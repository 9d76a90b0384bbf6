// A demo and a browser for one test each, and the ways of waiting: for conditions, never for time.

import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import assert from 'node:assert/strict';

const require = createRequire(join(process.env.MODULES, 'x.js'));
export const { chromium } = require('playwright-core');
export const axePath = require.resolve('axe-core/axe.min.js');

const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** Starts `httpserver demo` on free ports. */
export async function startDemo(...flags) {
  const child = spawn(process.env.HTTPSERVER, ['demo', '--port', '0', '--store-port', '0', ...flags], { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  const found = new Promise((resolve, reject) => {
    child.stdout.on('data', (data) => {
      text += data;
      const page = /^ *page +(http:\/\/[^\s/]+)\/\?key=(\S+)/m.exec(text), front = /^ *service1 +(http:\/\/\S+)/m.exec(text);
      if (page && front && text.includes('Try it')) resolve({ page: page[1], key: page[2], front: front[1] });
    });
    child.on('exit', (code) => reject(new Error(`the demo ended with ${code}`)));
  });
  const { page, key, front } = await found;
  return {
    page, key, front,
    async get(path) { return (await fetch(page + path)).json(); },
    async report(spans) {
      const answer = await fetch(`${page}/api/v2/spans`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(spans) });
      assert.equal(answer.status, 202);
    },
    async stop() {
      const ended = new Promise((resolve) => child.on('exit', resolve));
      if (child.exitCode === null) { child.kill('SIGINT'); await ended; }
    },
  };
}

/** Starts `httpserver store` on free ports. */
export async function startStore() {
  const child = spawn(process.env.HTTPSERVER, ['store', '--port', '0', '--otlp-port', '0', '--otlp-grpc-port', '0'], { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  const [page, otlp] = await new Promise((resolve, reject) => {
    child.stdout.on('data', (data) => {
      text += data;
      const page = /^ *page +(http:\/\/[^\s/]+)\/\?key=/m.exec(text), otlp = /^ *otlp +(http:\/\/\S+)/m.exec(text);
      if (page && otlp) resolve([page[1], otlp[1]]);
    });
    child.on('exit', (code) => reject(new Error(`the store ended with ${code}`)));
  });
  return {
    page,
    async report(spans) {
      const answer = await fetch(otlp, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(spans) });
      assert.equal(answer.status, 200);
    },
    async stop() {
      const ended = new Promise((resolve) => child.on('exit', resolve));
      if (child.exitCode === null) { child.kill('SIGINT'); await ended; }
    },
  };
}

/** A browser with an empty profile. `rules`: Chromium's host resolver rules. */
export async function startBrowser(rules) {
  const profile = mkdtempSync(join(tmpdir(), 'httpserver-e2e-'));
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: [...FLAGS, ...(rules ? [`--host-resolver-rules=${rules}`] : [])], env: { ...process.env, HOME: profile } });
  return { browser, async stop() { await browser.close(); rmSync(profile, { recursive: true, force: true }); } };
}

/** A tab. What it logs as an error, what it throws, what it opens and whom it asks is kept. */
export async function tab(browser, url, { width = 1280, height = 900, scheme = 'light', ...more } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, acceptDownloads: true, ...more });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  const wrong = [], asked = [];
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) wrong.push(`${message.type()}: ${message.text()}`); });
  page.on('pageerror', (error) => wrong.push(`thrown: ${error.message}`));
  page.on('dialog', (dialog) => { wrong.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  context.on('request', (request) => asked.push(request.url()));
  await page.addInitScript(() => {
    window.shifts = [];
    new PerformanceObserver((list) => { for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts.push({ value: entry.value, what: entry.sources.map((s) => s.node?.id || s.node?.className || s.node?.nodeName) }); }).observe({ type: 'layout-shift', buffered: true });
  });
  await page.goto(url);
  return {
    page, context, wrong, asked,
    /** Nothing was wrong, and nobody else was asked. */
    async clean() {
      assert.deepEqual(wrong, []);
      const origin = new URL(url).origin;
      assert.deepEqual(asked.filter((asked) => !asked.startsWith(`${origin}/`) && !asked.startsWith('blob:')), []);
      await context.close();
    },
  };
}

/** Waits until `test` gives something true, and gives it back. */
export async function eventually(test, what) {
  const deadline = Date.now() + 60_000;
  let last;
  while (Date.now() < deadline) {
    try {
      last = await test();
      if (last) return last;
    } catch (error) { last = error; }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`it did not come: ${what ?? test} (last: ${last})`);
}

/** The id of the open trace. */
export const openId = (page) => page.evaluate(() => /#\/trace\/([0-9a-f]+)/.exec(location.hash)?.[1]);

/** Sends one request and waits until its trace is open and has as many spans as expected; none when it is not sampled. */
export async function sendOne(page, spans = 5) {
  const before = await openId(page);
  await page.click('#one');
  await eventually(async () => { const now = await openId(page); return now && now !== before; }, 'another trace is open');
  const id = await openId(page);
  // The address is the new trace's before anything of it is drawn, and the tree still the old one's: with as many spans, often.
  const drawn = ([id, spans]) => document.querySelector(`#links a[href="/api/v2/trace/${id}"]`) && document.querySelector('#view-time [role=tree]').getAttribute('aria-label').endsWith(` ${spans}`);
  if (spans) await eventually(() => page.evaluate(drawn, [id, spans]), `${spans} spans of ${id}`);
  return id;
}
