// The program as a process: exit codes, one-line errors, signals.
import assert from 'node:assert/strict';
import {cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {test} from 'node:test';
import {context, model, root, run, startServer} from './server.mjs';

test('the port is in use', async (t) => {
  const server = await startServer();
  t.after(() => server.child.kill('SIGKILL'));
  const port = new URL(server.url).port;
  const second = await run(['serve', '--model', model, '--port', port]);
  assert.equal(second.code, 1);
  assert.equal(second.stderr,
               `fathom: cannot listen on 127.0.0.1:${port}; the port is in use or not allowed. ` +
                   'Choose another with --port\n');
  await server.stop();
});

test('a damaged file of weights is found by --verify', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'fathom-verify-'));
  t.after(() => rmSync(folder, {recursive: true}));
  cpSync(model, folder, {recursive: true});
  for (const name of ['tokenizer.json', 'model.safetensors']) {  // in the list's order reversed
    const file = join(folder, name);
    const bytes = readFileSync(file);
    bytes[bytes.length - 3] ^= 4;
    writeFileSync(file, bytes);
    const {code, stderr} = await run(['serve', '--model', folder, '--port', '0', '--verify']);
    assert.equal(code, 1);
    assert.match(stderr, /^fathom: .*: its SHA-256 is [0-9a-f]{64}, SHA256SUMS says/);
    assert.ok(stderr.includes(name), stderr);
  }
});

test('the load generator loads this machine only, and counts what fails', async (t) => {
  for (const host of ['192.0.2.1', '127.0.0.1.example', 'localhost@192.0.2.1', '127.1@192.0.2.1']) {
    const far = await run(['bench', 'serve', '--url', `http://${host}:80`]);
    assert.equal(far.code, 1);
    assert.match(far.stderr, /expected a loopback address/);
  }
  const server = await startServer();
  t.after(() => server.child.kill('SIGKILL'));
  const load = (...more) => run(['bench', 'serve', '--concurrency', '4',
                                 '--max-tokens', '5', '--json', ...more]);
  const good = JSON.parse((await load('--requests', '12', '--url', server.url)).stdout);
  assert.equal(good.answered, 12);
  assert.deepEqual(good.failures, {});
  assert.ok(good.ttft_ms.p99 >= good.ttft_ms.p50 && good.ttft_ms.p50 > 0);
  assert.ok(good.request_ms.p50 >= good.ttft_ms.p50);
  const few = JSON.parse((await load('--requests', '2', '--url', server.url + '/')).stdout);
  assert.equal(few.ttft_ms.p99, few.ttft_ms.most);
  const refused = await load('--requests', '12', '--url', server.url, '--rate', '100',
                             '--prompt-tokens', String(context + 100));
  const long = JSON.parse(refused.stdout);
  assert.equal(long.answered, 0);
  const [[cause, count], ...others] = Object.entries(long.failures);
  assert.match(cause, /^status 400: the prompt has \d+ tokens/);
  assert.deepEqual([count, others], [12, []]);
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /no request was answered: status 400: the prompt has/);
  await server.stop();
});

test('SIGTERM ends a running stream cleanly and exits 0', async (t) => {
  const server = await startServer();
  t.after(() => server.child.kill('SIGKILL'));
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

test('chat leaves out a message that cannot be answered and goes on', async () => {
  const lines = Buffer.concat([Buffer.from('word '.repeat(12000) + '\n'), Buffer.from([0xff, 0x0a]),
    Buffer.from('hello\n/clear\nhello again\n')]);
  const result = await run(['chat', '--model', model, '--max-tokens', '5'], lines);
  assert.equal(result.code, 1);
  assert.match(result.stderr, new RegExp(
    `^fathom: the prompt has \\d+ tokens; the model's context is ${context} .*; the message was left out`));
  assert.match(result.stderr, /\nfathom: the message is not valid UTF-8; the message was left out/);
  assert.match(result.stderr, /\nfathom: 2 messages were left out\n$/);
  assert.ok(result.stdout.trim() !== '' && !result.stdout.includes('\x1b'), 'answers, no reasoning');
});

test('wrong flags are named', async () => {
  const generate = ['generate', '--model', model, '--max-tokens', '2'];
  const table = [
    [[...generate, '--prompt', 'x', '--stop', ''], 2, /--stop: is empty; expected the text that ends/],
    [[...generate, '--prompt', 'x', '--threads', '-3'], 2, /--threads: Value -3 not in range/],
    [[...generate, '--prompt', 'x', '--temperature', '9'], 1, /^fathom: temperature is 9; expected 0 to 2\n$/],
    [['pretrain', '--recipe', 'r', '--minutes', '-5'], 2, /--minutes: Value -5 not in range/],
    [['serve', '--threads', '0'], 2, /--threads: Value 0 not in range/],
    [[...generate, '--prompt', 'x', '--seed', '-1'], 2, /--seed: -1 is no seed; expected an integer/],
    [['pretrain', '--recipe', 'r', '--minutes', 'nan'], 2, /--minutes: Value nan not in range 0.01 to/],
    [['bench', '--tokens', '0'], 2, /--tokens: Value 0 not in range/],
    [['pretrain', '--recipe', join(root, 'recipes/nano.json'), '--run', join(tmpdir(), 'never'),
      '--expert-parallel', '5'], 1, /--expert-parallel is 5 of 1 ranks; expected a divisor/],
  ];
  for (const [args, code, message] of table) {
    const result = await run(args);
    assert.equal(result.code, code, result.stderr);
    assert.match(result.stderr, message);
  }
  const bad = await run([...generate, '--prompt', '-'], Buffer.from([0x61, 0xff]));
  assert.equal(bad.stderr, 'fathom: --prompt: byte 1 is not valid UTF-8; expected text in UTF-8\n');
  assert.equal(bad.code, 1);
});

// A copy of the bundled model for one test.
function copyOfModel(t) {
  const folder = mkdtempSync(join(tmpdir(), 'fathom-model-'));
  t.after(() => rmSync(folder, {recursive: true}));
  cpSync(model, folder, {recursive: true});
  return folder;
}

test('damaged weights give an error, not text', async (t) => {
  const folder = copyOfModel(t);
  const file = join(folder, 'model.safetensors'), bytes = readFileSync(file);
  const size = Number(bytes.readBigUInt64LE(0)), header = JSON.parse(bytes.subarray(8, 8 + size));
  bytes.writeUInt16LE(0x7fc0, 8 + size + header['model.norm.weight'].data_offsets[0]);  // a bf16 NaN
  writeFileSync(file, bytes);
  const generated = await run(['generate', '--model', folder, '--prompt', 'The', '--max-tokens', '3']);
  assert.equal(generated.code, 1);
  assert.match(generated.stderr, /^fathom: generation failed: the logits of position \d+ are not finite/);
  const out = join(folder, 'out.safetensors');
  const forward = await run(['forward', '--model', folder, '--out', out, '--tokens',
    `${root}/tests/data/tiny-bf16/cases.safetensors:plain.short.tokens`]);
  assert.equal(forward.code, 1);
  assert.match(forward.stderr, /^fathom: .*: the logits of row 0 are not finite; the weights are damaged\n$/);
  assert.ok(!existsSync(out));
  const server = await startServer('--model', folder);
  t.after(() => server.child.kill('SIGKILL'));
  const ask = async (stream) => fetch(server.url + '/v1/completions',
      {method: 'POST', body: JSON.stringify({prompt: 'The', max_tokens: 3, stream})});
  assert.equal((await ask(false)).status, 500);
  assert.match(await (await ask(true)).text(), /not finite.*"code":"internal_error"/);
  assert.equal((await fetch(server.url + '/health')).status, 200);
  await server.stop();
});

test('generate samples as generation_config.json says where no flag does', async (t) => {
  const folder = copyOfModel(t);
  const text = async (...flags) =>
      (await run(['generate', '--model', folder, '--prompt', 'The', '--max-tokens', '20', ...flags])).stdout;
  const greedy = await text('--temperature', '0');
  assert.notEqual(await text('--seed', '3'), greedy);
  writeFileSync(join(folder, 'generation_config.json'), '{"do_sample": false}');
  assert.equal(await text('--seed', '3'), greedy);
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
