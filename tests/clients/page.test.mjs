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
  assert.match(await page.textContent('#status'), /· stopped$/);
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

// Asks for an answer without an end of its own and runs an action in the page while it comes.
async function during(page, action) {
  await page.click('#run');
  await page.waitForFunction((body) => {
    const isRunning = document.getElementById('status').textContent.includes('tokens/s');
    if (isRunning) new Function(body)();
    return isRunning;
  }, action);
  await page.waitForSelector('#stop', {state: 'hidden'});
}

async function openPage(url, t) {
  const page = await browser.newPage({viewport: {width: 1000, height: 760}});
  t.after(() => page.close());
  page.on('pageerror', (error) => problems.push(String(error)));
  await page.goto(url);
  await page.click('summary');
  await page.fill('#temperature', '0');
  await page.fill('#max_tokens', '7500');
  return page;
}

const circles = '0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,';

test('what the user puts into the box stays as it is', async (t) => {
  const page = await openPage(server.url, t);
  for (const [selector, wanted] of [['#clear', /^$/], ['#chips button', /^It was a fine .* Miss$/]]) {
    await page.fill('#text', circles);
    // Between two drawings, when tokens have come that are not in the box yet.
    await during(page, `setTimeout(() => document.querySelector('${selector}').click(), 20)`);
    assert.match(await page.inputValue('#text'), wanted);
    assert.equal(await page.textContent('#status'), '');
  }
  await page.click('#tab-chat');
  await page.fill('#question', circles);
  await during(page, `document.getElementById('clear').click()`);
  assert.equal(await page.textContent('#status'), '');
  assert.equal(await page.locator('.message').count(), 0);
});

test('what ended an answer is shown', async (t) => {
  const other = await startServer();
  t.after(() => other.child.kill('SIGKILL'));
  const page = await openPage(other.url, t);
  await page.fill('#text', circles);
  await page.fill('#max_tokens', '5');
  await page.click('#run');
  await page.waitForSelector('#stop', {state: 'hidden'});
  assert.match(await page.textContent('#status'), /· stopped at the token limit$/);
  await page.fill('#max_tokens', '7500');
  await page.exposeFunction('end', () => { other.child.kill('SIGTERM'); });
  await during(page, 'end()');
  assert.match(await page.textContent('#status'), /· cut off: the server is stopping$/);
  await other.stop();
});

test('a server that is gone is named, and what it has said stays', async (t) => {
  const other = await startServer();
  t.after(() => other.child.kill('SIGKILL'));
  const page = await openPage(other.url, t);
  await page.click('#tab-chat');
  await page.fill('#question', circles);
  await page.exposeFunction('end', () => { other.child.kill('SIGKILL'); });
  await during(page, 'end()');
  const silence = 'the server does not answer; is `fathom serve` still running?';
  assert.equal(await page.textContent('#error'), silence);
  const answer = await page.textContent('.message.assistant');
  assert.notEqual(answer, '');
  await page.fill('#question', 'Still there?');
  await page.click('#run');
  await page.waitForSelector('#stop', {state: 'hidden'});
  assert.equal(await page.textContent('#error'), silence);
  assert.equal(await page.inputValue('#question'), 'Still there?');
  assert.deepEqual(await page.locator('.message').allTextContents(), [circles, answer]);
});

test('a number that cannot be read is named', async (t) => {
  const page = await openPage(server.url, t);
  await page.fill('#seed', '');
  await page.type('#seed', 'e--');
  await page.click('#run');
  assert.match(await page.textContent('#error'), /^Seed is not a number/);
  assert.equal(await page.evaluate(() => document.activeElement.id), 'seed');
});

test('the focus follows the buttons, and a selection outlives new tokens', async (t) => {
  const page = await openPage(server.url, t);
  await page.fill('#text', circles);
  await page.focus('#run');
  await during(page, `
    window.focused = document.activeElement.id;
    const box = document.getElementById('text');
    box.setSelectionRange(3, 8);
    setTimeout(() => document.getElementById('stop').click(), 100);`);
  assert.equal(await page.evaluate(() => focused), 'stop');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'run');
  const selection = await page.$eval('#text', (box) => [box.selectionStart, box.selectionEnd]);
  assert.deepEqual(selection, [3, 8]);
});

test('a chat follows its end only where the end is in view', async (t) => {
  const page = await openPage(server.url, t);
  await page.click('#tab-chat');
  const isFar = `(() => {
    const {bottom} = document.getElementById('question').getBoundingClientRect();
    return bottom > document.getElementById('bar').getBoundingClientRect().top + 1;
  })()`;
  await page.fill('#question', circles);
  await page.press('#question', 'Enter');
  await page.waitForFunction(() => document.querySelector('.assistant').offsetHeight > 1200);
  assert.equal(await page.evaluate(isFar), false);
  await page.evaluate(() => scrollTo(0, 100));
  const height = await page.$eval('.assistant', (box) => box.offsetHeight);
  await page.waitForFunction((old) => document.querySelector('.assistant').offsetHeight > old, height);
  assert.equal(await page.evaluate(() => scrollY), 100);
  assert.ok(await page.isVisible('#stop'));
  await page.click('#stop');
});

test('a chat stopped before its first token takes the question back', async (t) => {
  const page = await openPage(server.url, t);
  await page.click('#tab-chat');
  await page.fill('#question', 'What is a kernel?');
  await page.evaluate(() => { for (const id of ['run', 'stop']) document.getElementById(id).click(); });
  await page.waitForSelector('#stop', {state: 'hidden'});
  assert.equal(await page.locator('.message').count(), 0);
  assert.equal(await page.inputValue('#question'), 'What is a kernel?');
});

test('nothing went wrong in the console', () => {
  assert.deepEqual(problems.filter((text) => !text.includes('400')), []);
});
