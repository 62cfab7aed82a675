// What clients and operators do to a server: hang up, send too much or half of it, stop it at work.
import assert from 'node:assert/strict';
import net from 'node:net';
import {test} from 'node:test';
import {context, startServer} from './server.mjs';

const post = (url, body) =>
    fetch(url + '/v1/completions', {method: 'POST', body: JSON.stringify(body)});
const user = (i) => ({prompt: `Request ${i % 8} of`, max_tokens: 6, seed: i % 8});
const text = async (url, body) => (await (await post(url, body)).json()).choices[0].text;

// A connection of its own that sends `bytes` of a request and reads what comes, until it is cut.
function connect(url, body, {bytes = Infinity, stream = true} = {}) {
  const json = JSON.stringify({...body, stream});
  const request = `POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ${json.length}\r\n\r\n${json}`;
  const client = {answer: ''};
  client.closed = new Promise((resolve) => {
    client.socket = net.connect(Number(new URL(url).port), '127.0.0.1', () =>
      client.socket.write(request.slice(0, bytes)));
    client.socket.on('error', () => {});
    client.socket.on('close', resolve);
    client.begun = new Promise((begun) => client.socket.on('data', (data) => {
      client.answer += data;
      begun();
    }));
  });
  return client;
}

// Each returns once its client has what it wanted, or has gone.
const kinds = [
  async (url, i, expected) => assert.equal(await text(url, user(i)), expected[i % 8]),
  async (url, i) => {  // goes after the first token
    const client = connect(url, {prompt: `${i}`, max_tokens: 500, seed: i});
    await client.begun;
    client.socket.destroy();
  },
  async (url, i) => {  // does not wait for its answer
    const client = connect(url, {prompt: `${i}`, max_tokens: 500, seed: i}, {stream: false});
    setTimeout(() => client.socket.destroy(), i % 30);
    await client.closed;
  },
  async (url, i) => {  // goes in the middle of its request
    const client = connect(url, user(i), {bytes: 20 + i % 100});
    setTimeout(() => client.socket.destroy(), i % 30);
    await client.closed;
  },
  async (url) => assert.equal((await post(url, {prompt: 'word '.repeat(context + 100)})).status, 400),
  async (url) => {
    const response = await fetch(url + '/v1/completions', {method: 'POST', body: '{"prompt": "a'});
    assert.equal(response.status, 400);
  },
];

test('three hundred clients of all kinds: answers stay right, nothing is left behind', async (t) => {
  const server = await startServer();
  t.after(() => server.child.kill('SIGKILL'));
  const expected = [];
  for (let i = 0; i < 8; ++i) expected.push(await text(server.url, user(i)));
  let next = 0;
  const work = async () => {
    for (let i = next++; i < 300; i = next++) await kinds[i % kinds.length](server.url, i, expected);
  };
  await Promise.all(Array.from({length: 24}, work));
  await server.idle(30000);
  assert.equal(await server.metric('fathom_cache_pages_running'), 0);
  await server.stop();
});

// Neither writes anything before its client has gone: the answer comes whole, or its prompt is long.
test('a client that hangs up ends its request at once', async (t) => {
  const server = await startServer();
  t.after(() => server.child.kill('SIGKILL'));
  const endless = {max_tokens: context - 500, logit_bias: {0: -100, 1: -100}};
  for (const [prompt, stream] of [['a', false], ['word '.repeat(context - 600), true]]) {
    const client = connect(server.url, {prompt, ...endless}, {stream});
    while (await server.atWork() === 0) await new Promise((resolve) => setTimeout(resolve, 10));
    client.socket.destroy();
    await server.idle(stream ? 4000 : 1000);
  }
  assert.ok(await server.metric('fathom_generated_tokens_total') < 4000);
  await server.stop();
});

test('a crowd beyond the queue is told so, and the server still answers', async (t) => {
  const server = await startServer('--max-running', '2', '--max-waiting', '3');
  t.after(() => server.child.kill('SIGKILL'));
  const long = {prompt: 'a', max_tokens: context - 500, logit_bias: {0: -100, 1: -100}};
  const taken = Array.from({length: 5}, (_, i) => connect(server.url, {...long, seed: i}));
  while (await server.atWork() < 5) await new Promise((resolve) => setTimeout(resolve, 10));
  const crowd = await Promise.all(Array.from({length: 100}, () => post(server.url, long)));
  for (const response of crowd) {
    assert.equal(response.status, 429);
    assert.equal(response.headers.get('retry-after'), '1');
    const {error} = await response.json();
    assert.match(error.message, /^5 requests run or wait already; try again later$/);
    assert.equal(error.code, 'rate_limit_exceeded');
  }
  assert.equal((await fetch(server.url + '/health')).status, 200);
  for (const client of taken) client.socket.destroy();
  await server.idle();
  assert.equal((await post(server.url, user(1))).status, 200);
  await server.stop();
});

// Lists in lists that differ at their ends alone: n^5 readings are open after five brackets.
test('a schema that leaves too many readings open fails alone', async (t) => {
  const server = await startServer();
  t.after(() => server.child.kill('SIGKILL'));
  const level = (i, n) => ({anyOf: Array.from({length: n}, (_, k) =>
    ({type: 'array', minItems: 1, maxItems: k + 2, items: {$ref: `#/$defs/L${i + 1}`}}))});
  const $defs = {L5: {type: 'integer'}};
  for (let i = 0; i < 5; ++i) $defs[`L${i}`] = level(i, 12);
  const schema = {$ref: '#/$defs/L0', $defs};
  const start = Date.now();
  const [response] = await Promise.all([
    fetch(server.url + '/v1/chat/completions', {method: 'POST', body: JSON.stringify({
      messages: [{role: 'user', content: 'x'}], max_tokens: 40, temperature: 0,
      response_format: {type: 'json_schema', json_schema: {name: 'x', schema}}})}),
    text(server.url, user(2))]);
  assert.equal(response.status, 400);
  assert.match((await response.json()).error.message, /leaves too many readings open/);
  assert.ok(Date.now() - start < 10000, `${Date.now() - start} ms`);
  await server.stop();
});

// Prompts that take a minute to read: most have no token when the signal comes.
test('SIGTERM with a hundred requests at work and waiting: all end, exit 0 in ten seconds', async (t) => {
  const server = await startServer('--cache-mib', '64');
  t.after(() => server.child.kill('SIGKILL'));
  const short = connect(server.url, {prompt: 'a', max_tokens: context - 100, seed: 1});
  await short.begun;
  const clients = Array.from({length: 100}, (_, i) => connect(server.url,
    {prompt: `${i} ` + 'word '.repeat(context - 1000), max_tokens: 500}, {stream: i % 2 === 0}));
  for (let i = 0; i < 400 && await server.atWork() < 80; ++i)
    await new Promise((resolve) => setTimeout(resolve, 50));
  const start = Date.now();
  await server.stop();
  assert.ok(Date.now() - start < 10000, `${Date.now() - start} ms`);
  await Promise.all([short, ...clients].map((client) => client.closed));
  assert.match(short.answer, /"finish_reason":"(insufficient_system_resource|length|stop)"/);
  assert.ok(short.answer.endsWith('data: [DONE]\n\n\r\n0\r\n\r\n'), short.answer.slice(-200));
  const refused = clients.filter(({answer}) => answer.includes('the server is shutting down'));
  assert.ok(refused.length > 40, `${refused.length}`);
  for (const {answer} of refused) assert.match(answer, /^HTTP\/1.1 (503|200)[^]*"shutting_down"/);
});

test('SIGTERM does not wait for a request that trickles in', async (t) => {
  const server = await startServer();
  t.after(() => server.child.kill('SIGKILL'));
  const client = connect(server.url, user(1), {bytes: 30});
  const trickle = setInterval(() => client.socket.write('x'), 500);
  t.after(() => clearInterval(trickle));
  await new Promise((resolve) => setTimeout(resolve, 600));
  const start = Date.now();
  await server.stop();
  assert.ok(Date.now() - start < 10000, `${Date.now() - start} ms`);
  client.socket.destroy();
});
