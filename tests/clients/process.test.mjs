// The program as a process: exit codes, one-line errors, signals.
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import {test} from 'node:test';
import {model, root, run, startServer} from './server.mjs';

test('the port is in use', async () => {
  const server = await startServer();
  const port = new URL(server.url).port;
  const second = await run(['serve', '--model', model, '--port', port]);
  assert.equal(second.code, 1);
  assert.equal(second.stderr,
               `fathom: cannot listen on 127.0.0.1:${port}; the port is in use or not allowed. ` +
                   'Choose another with --port\n');
  await server.stop();
});

test('SIGTERM ends a running stream cleanly and exits 0', async () => {
  const server = await startServer();
  const response = await fetch(server.url + '/v1/completions', {
    method: 'POST', body: JSON.stringify({prompt: 'a', max_tokens: 4000, stream: true}),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = (await reader.read()).value;
  const start = Date.now();
  const stopped = server.stop();
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    text += value;
  }
  await stopped;
  assert.ok(text.endsWith('data: [DONE]\n\n'), text.slice(-200));
  assert.ok(Date.now() - start < 10000);
});

test('a missing model is one line and exit code 1', async () => {
  const result = await run(['serve', '--model', '/nowhere', '--port', '0']);
  assert.equal(result.code, 1);
  assert.match(result.stderr, /^fathom: \/nowhere: no such folder; expected one with config\.json.*\n$/);
});

test('wrong usage is exit code 2', async () => {
  assert.equal((await run(['serve', '--prot', '1'])).code, 2);
  assert.equal((await run(['juggle'])).code, 2);
  assert.equal((await run(['--help'])).code, 0);
});

test('generate continues a text, the same one for the same seed', async () => {
  const args = ['generate', '--model', model, '--prompt', 'The ', '--max-tokens', '12', '--seed', '3'];
  const first = await run([...args, '--json']);
  const second = await run([...args, '--json']);
  assert.equal(first.code, 0, first.stderr);
  assert.equal(JSON.parse(first.stdout).text, JSON.parse(second.stdout).text);
  assert.equal(JSON.parse(first.stdout).completion_tokens, 12);
});

test('chat answers line by line', async () => {
  const result = await run(['chat', '--model', model, '--max-tokens', '5'], 'hello\nand?\n/exit\n');
  assert.equal(result.code, 0, result.stderr);
});

test('tokenize and its inverse', async () => {
  const lines = '"The quick brown fox"\n"naïve 你好"\n';
  const ids = await run(['tokenize', '--model', model], lines);
  assert.equal(ids.code, 0, ids.stderr);
  const back = await run(['tokenize', '--model', model, '--decode'], ids.stdout);
  assert.deepEqual(back.stdout.trim().split('\n').map(JSON.parse), lines.trim().split('\n').map(JSON.parse));
});

test('encode-chat prints the prompt and nothing else', async () => {
  const cases = JSON.parse(readFileSync(`${root}/tests/data/chat.json`)).encode;
  for (const one of cases) {
    if (one.name === 'response_format') continue;  // holds 1.0, which JavaScript writes as 1
    const result = await run(['encode-chat'], JSON.stringify(one));
    assert.equal(result.code, one.error ? 1 : 0, one.name);
    assert.equal(result.stdout, one.text ?? '', one.name);
  }
});
