// The page at / in a real browser.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import {chromium} from 'playwright-core';
import {output, startServer} from './server.mjs';

let server, browser, page;
const problems = [];
before(async () => {
  server = await startServer();
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
           '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  page = await browser.newPage({viewport: {width: 1000, height: 760}});
  page.on('console', (message) => { if (message.type() === 'error') problems.push(message.text()); });
  page.on('pageerror', (error) => problems.push(String(error)));
  await page.goto(server.url);
});
after(async () => {
  await browser?.close();
  await server.stop();
});

test('a text grows and the rate is shown', async () => {
  await page.waitForFunction(() => document.getElementById('model').textContent.includes('context'));
  const before = await page.inputValue('#text');
  // Drawn at random, an answer may end after a few tokens.
  const setTemperature = (value) =>
    page.evaluate((to) => { document.getElementById('temperature').value = to; }, value);
  await setTemperature('0');
  await page.click('#run');
  await page.waitForSelector('#stop', {state: 'hidden'});
  await setTemperature('0.8');
  const text = await page.inputValue('#text');
  assert.ok(text.startsWith(before) && text.length > before.length + 20, text);
  assert.match(await page.textContent('#status'), /\d+ tokens, \d+ tokens\/s/);
  await page.screenshot({path: `${output}/page-complete.png`});
});

test('stop ends an answer', async () => {
  await page.click('summary');
  await page.fill('#max_tokens', '7500');
  // Goes on in circles, never to an end of its own.
  await page.fill('#text', '0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,');
  await page.fill('#temperature', '0');
  await page.click('#run');
  // In the page itself: between seeing the rate and clicking from outside a small model is done.
  await page.waitForFunction(() => {
    const isRunning = document.getElementById('status').textContent.includes('tokens/s');
    if (isRunning) document.getElementById('stop').click();
    return isRunning;
  });
  await page.waitForSelector('#stop', {state: 'hidden'});
  assert.match(await page.textContent('#status'), /stopped/);
  await page.fill('#temperature', '0.8');
  await server.idle();
});

test('an error is shown in the page', async () => {
  await page.fill('#max_tokens', '0');
  await page.click('#run');
  await page.waitForSelector('#error:not([hidden])');
  assert.match(await page.textContent('#error'), /max_tokens is 0; expected 1 to 2147483647/);
  await page.fill('#max_tokens', '40');
});

test('chat answers, on a narrow screen and in the dark', async () => {
  await page.setViewportSize({width: 380, height: 760});
  await page.emulateMedia({colorScheme: 'dark'});
  await page.click('#tab-chat');
  await page.fill('#question', 'What is a kernel?');
  await page.press('#question', 'Enter');
  await page.waitForSelector('.message.assistant');
  await page.waitForSelector('#stop', {state: 'hidden'});
  assert.equal(await page.textContent('.message.user'), 'What is a kernel?');
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `the page is ${overflow} px too wide`);
  await page.screenshot({path: `${output}/page-chat-dark.png`});
});

test('nothing went wrong in the console', () => {
  assert.deepEqual(problems.filter((text) => !text.includes('400')), []);
});
