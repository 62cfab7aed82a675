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
    const client = connect(url, {prompt: `${i}`, max_tokens: 20, seed: i}, {stream: false});
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
