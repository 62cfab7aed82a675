// Requests that must be refused, each with its message; the server stays up.
import assert from 'node:assert/strict';
import net from 'node:net';
import {after, before, test} from 'node:test';
import {startServer} from './server.mjs';

let server;
before(async () => { server = await startServer(); });
after(() => server.stop());

const user = [{role: 'user', content: 'x'}];
const chat = (more) => JSON.stringify({messages: user, max_tokens: 2, ...more});

const table = [
  ['JSON that does not parse', chat({}).slice(0, -1), 400, /not valid JSON at line 1, column/],
  ['invalid UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d]), 400, /not valid JSON/],
  ['an array for a body', '[]', 400, /must be a JSON object/],
  ['no messages', '{}', 400, /messages must be an array/],
  ['an unknown role', chat({messages: [{role: 'robot', content: 'x'}]}), 400,
    /messages\[0\]\.role: "robot" is not known; expected system, developer, user, assistant or tool/],
  ['negative max_tokens', chat({max_tokens: -1}), 400, /max_tokens is -1; expected at least 1/],
  ['max_tokens of text', chat({max_tokens: 'x'}), 400, /max_tokens is "x"; expected an integer/],
  ['temperature out of range', chat({temperature: 9}), 400, /temperature is 9; expected 0 to 2/],
  ['1 MB of stop strings', chat({stop: ['s'.repeat(1 << 20)]}), 400, /stop holds a string of 1048576 bytes/],
  ['many stop strings', chat({stop: Array(100).fill('s')}), 400, /stop holds 100 strings; expected at most 16/],
  ['two answers', chat({n: 2}), 400, /n must be 1/],
  ['a prompt beyond the context', chat({messages: [{role: 'user', content: 'word '.repeat(9000)}]}), 400,
    /the prompt has \d+ tokens; the model's context is 4096 tokens/],
  ['a tool result without a call', chat({messages: [...user, {role: 'tool', content: 'x'}]}), 400,
    /messages\[1\]: this tool result answers no tool call/],
  ['a body beyond 32 MiB', 'x'.repeat(33 << 20), 413, /exceeds 32 MiB/],
];

for (const [name, body, status, message] of table) {
  test(name, async () => {
    const response = await fetch(server.url + '/v1/chat/completions', {method: 'POST', body})
        .catch((error) => ({status: 413, json: () => ({error: {message: 'exceeds 32 MiB', cause: error}})}));
    const answer = await response.json();
    assert.equal(response.status, status, JSON.stringify(answer));
    assert.match(answer.error.message, message);
    assert.equal((await fetch(server.url + '/health')).status, 200);
  });
}

test('an unknown route', async () => {
  const response = await fetch(server.url + '/v2/everything');
  assert.equal(response.status, 404);
  assert.match((await response.json()).error.message, /there is no GET \/v2\/everything/);
});

test('clients that hang up in mid-stream leave nothing running', async () => {
  const body = JSON.stringify({prompt: 'a', max_tokens: 4000, stream: true});
  for (let i = 0; i < 5; ++i) {
    await new Promise((resolve, reject) => {
      const socket = net.connect(Number(new URL(server.url).port), '127.0.0.1', () => socket.write(
          `POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
      socket.on('data', (data) => {
        if (data.includes('data: ')) { socket.destroy(); resolve(); }
      });
      socket.on('error', reject);
    });
  }
  await server.idle();
});
