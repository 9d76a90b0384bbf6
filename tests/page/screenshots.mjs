// The pictures for the README: `node screenshots.mjs DIR`. Run by scripts/e2e-page.sh --pictures.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { deflateSync, inflateSync, crc32 } from 'node:zlib';
import assert from 'node:assert/strict';
import { startDemo, startBrowser, tab, eventually, sendOne } from './demo.mjs';

const MOST = 150_000;

/** A PNG with a palette: flat colours and text need no more than 256 of them, and a third of the bytes. */
function shrink(png) {
  const chunks = [];
  for (let at = 8; at < png.length; ) {
    const length = png.readUInt32BE(at);
    chunks.push([png.toString('latin1', at + 4, at + 8), png.subarray(at + 8, at + 8 + length)]);
    at += length + 12;
  }
  const head = chunks.find(([type]) => type === 'IHDR')[1];
  const width = head.readUInt32BE(0), height = head.readUInt32BE(4), channels = { 2: 3, 6: 4 }[head[9]];
  assert.ok(channels && head[8] === 8 && head[12] === 0, 'Chromium writes 8-bit RGB or RGBA');
  const raw = inflateSync(Buffer.concat(chunks.filter(([type]) => type === 'IDAT').map(([, data]) => data)));
  const line = width * channels, pixels = Buffer.alloc(line * height);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (line + 1)];
    for (let x = 0; x < line; x++) {
      const left = x >= channels ? pixels[y * line + x - channels] : 0, up = y ? pixels[(y - 1) * line + x] : 0, corner = y && x >= channels ? pixels[(y - 1) * line + x - channels] : 0;
      const guess = left + up - corner;
      const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
      const add = [0, left, up, (left + up) >> 1, a <= b && a <= c ? left : b <= c ? up : corner][filter];
      pixels[y * line + x] = raw[y * (line + 1) + 1 + x] + add;
    }
  }
  // The most frequent colours are kept; of colours that differ by a few steps, one stands for all.
  const counts = new Map();
  const colour = (i) => (pixels[i] << 16) | (pixels[i + 1] << 8) | pixels[i + 2];
  for (let i = 0; i < pixels.length; i += channels) counts.set(colour(i), (counts.get(colour(i)) ?? 0) + 1);
  const far = (a, b) => ((a >> 16) - (b >> 16)) ** 2 + (((a >> 8) & 255) - ((b >> 8) & 255)) ** 2 + ((a & 255) - (b & 255)) ** 2;
  const palette = [];
  for (const [c] of [...counts].sort((a, b) => b[1] - a[1])) {
    if (palette.length === 256) break;
    if (palette.every((p) => far(p, c) > 60)) palette.push(c);
  }
  const place = new Map();
  for (const c of counts.keys()) place.set(c, palette.reduce((best, p, i) => (far(p, c) < far(palette[best], c) ? i : best), 0));
  const rows = Buffer.alloc((width + 1) * height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) rows[y * (width + 1) + 1 + x] = place.get(colour(y * line + x * channels));
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type, 'latin1'), data]), length = Buffer.alloc(4), sum = Buffer.alloc(4);
    length.writeUInt32BE(data.length);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const header = Buffer.from(head);
  header[9] = 3;
  return Buffer.concat([png.subarray(0, 8), chunk('IHDR', header), chunk('PLTE', Buffer.from(palette.flatMap((p) => [p >> 16, (p >> 8) & 255, p & 255]))), chunk('IDAT', deflateSync(rows, { level: 9 })), chunk('IEND', Buffer.alloc(0))]);
}

const [directory] = process.argv.slice(2);
const demo = await startDemo('--latency', '10ms..40ms');
const { browser, stop } = await startBrowser();
try {
  const t = await tab(browser, demo.page, { width: 1280, height: 860 });
  const { page } = t;
  await page.waitForSelector('.rows .row');
  await page.click('#ten');
  await eventually(async () => /10 requests sent/.test(await page.innerText('#sent')));
  await sendOne(page);
  // At rest: figures are in, nothing glows, nothing has the focus.
  await eventually(async () => Number(await page.locator('.figures dd').first().innerText()) >= 1);
  const rest = () => eventually(() => page.evaluate(() => { document.activeElement?.blur(); return !document.querySelector('.lit, .lit-bad'); }));
  const shoot = async (name, clip) => {
    await rest();
    const png = shrink(await page.screenshot({ clip, fullPage: true }));
    assert.ok(png.length < MOST, `${name}: ${png.length} bytes`);
    writeFileSync(join(directory, name), png);
    console.log(`${join(directory, name)}: ${(png.length / 1000).toFixed(0)} KB`);
  };
  const size = await page.evaluate(() => { const tree = document.querySelector('.keys').getBoundingClientRect(); return { x: 0, y: 0, width: innerWidth, height: Math.ceil(tree.bottom + scrollY + 12) }; });
  await shoot('page-timeline.png', size);
  await page.selectOption('#speaks', 'both');
  await sendOne(page);
  await page.click('#tab-headers');
  await page.waitForSelector('.edge');
  const box = await page.locator('#trace').boundingBox();
  const story = await page.locator('.told').boundingBox();
  await shoot('page-headers.png', { x: box.x, y: story.y - 8, width: box.width, height: box.y + box.height - story.y + 8 });
  await t.clean();
} finally {
  await stop();
  await demo.stop();
}
