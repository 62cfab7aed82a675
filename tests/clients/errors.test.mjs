// Requests that must be refused, each with its message; the server stays up.
import assert from 'node:assert/strict';
import http from 'node:http';
import net from 'node:net';
import {after, before, test} from 'node:test';
import {gzipSync} from 'node:zlib';
import {context, startServer} from './server.mjs';

let server;
before(async () => { server = await startServer(); });
after(() => server.stop());

const user = [{role: 'user', content: 'x'}];
const chat = (more) => JSON.stringify({messages: user, max_tokens: 2, ...more});

const nested = (levels) => '['.repeat(levels) + ']'.repeat(levels);
const called = (args) => [...user, {role: 'assistant', tool_calls: [
  {id: 'a', type: 'function', function: {name: 'f', arguments: args}}]}];

// name, body, the message, the field named
const table = [
  ['JSON that does not parse', chat({}).slice(0, -1), /not valid JSON at line 1, column/, null],
  ['an empty body', '', /not valid JSON/, null],
  ['invalid UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x3a, 0x31, 0x7d]), /not valid JSON/, null],
  ['half a surrogate pair', '{"messages": "\\ud800"}', /not valid JSON/, null],
  ['an array for a body', '[]', /must be a JSON object/, null],
  ['no messages', '{}', /messages must be an array/, 'messages'],
  ['an unknown role', chat({messages: [{role: 'robot', content: 'x'}]}),
    /messages\[0\]\.role: "robot" is not known; expected system, developer, user, assistant or tool/, 'messages'],
  ['a role of number', chat({messages: [{role: 5, content: 'x'}]}), /messages\[0\]\.role must be a string/, 'messages'],
  ['content of number', chat({messages: [{role: 'user', content: 5}]}),
    /messages\[0\]\.content: expected a string/, 'messages'],
  ['an image', chat({messages: [{role: 'user', content: [{type: 'image_url'}]}]}),
    /messages\[0\]\.content: only parts of type "text"/, 'messages'],
  ['a part without a type', chat({messages: [{role: 'user', content: [{type: 5}]}]}),
    /messages\[0\]\.content: only parts of type "text"/, 'messages'],
  ['negative max_tokens', chat({max_tokens: -1}), /max_tokens is -1; expected 1 to 2147483647/, 'max_tokens'],
  ['max_tokens of text', chat({max_tokens: 'x'}), /max_tokens is "x"; expected an integer/, 'max_tokens'],
  ['temperature out of range', chat({temperature: 9}), /temperature is 9; expected 0 to 2/, 'temperature'],
  ['a long value is cut in the message', chat({temperature: 'x'.repeat(9000)}),
    /^temperature is "x{1,80}\.\.\.; expected a number$/, 'temperature'],
  ['top_p of nothing', chat({top_p: 0}), /top_p is 0; expected above 0/, 'top_p'],
  ['min_p above 1', chat({min_p: 2}), /min_p is 2; expected 0 to 1/, 'min_p'],
  ['a penalty out of range', chat({presence_penalty: 3}), /presence_penalty is 3; expected -2 to 2/, 'presence_penalty'],
  ['a bias of text', chat({logit_bias: {5: 'x'}}), /logit_bias must be an object of token ids and numbers/, 'logit_bias'],
  ['a bias of a word', chat({logit_bias: {the: 5}}), /logit_bias must be an object of token ids/, 'logit_bias'],
  ['a bias out of range', chat({logit_bias: {5: 101}}), /logit_bias is 101; expected -100 to 100/, 'logit_bias'],
  ['a bias of no token', chat({logit_bias: {99999999: 1}}), /logit_bias names token 99999999; the vocabulary has/, null],
  ['negative top_k', chat({top_k: -1}), /top_k is -1; expected at least 0/, 'top_k'],
  ['1 MB of stop strings', chat({stop: ['s'.repeat(1 << 20)]}), /stop holds a string of 1048576 bytes/, 'stop'],
  ['a stop token of text', chat({stop_token_ids: ['x']}), /stop_token_ids holds "x"; expected token ids/, 'stop_token_ids'],
  ['a stop token beyond the vocabulary', chat({stop_token_ids: [99999999]}), /stop_token_ids names token 99999999/, null],
  ['many stop strings', chat({stop: Array(100).fill('s')}), /stop holds 100 strings; expected at most 16/, 'stop'],
  ['two answers', chat({n: 2}), /n must be 1/, 'n'],
  ['thinking of another kind', chat({thinking: {type: 5}}), /thinking must be \{"type": "enabled"\}/, 'thinking'],
  ['a prompt beyond the context', chat({messages: [{role: 'user', content: 'word '.repeat(12000)}]}),
    new RegExp(`the prompt has \\d{4,5} tokens; the model's context is ${context} tokens`), null],
  ['a tool result without a call', chat({messages: [...user, {role: 'tool', content: 'x'}]}),
    /messages\[1\]: this tool result answers no tool call/, 'messages'],
  ['arguments that are no JSON', chat({messages: called('{nope')}), /messages\[1\]\.tool_calls: arguments/, 'messages'],
  ['deeply nested JSON', `{"messages": ${nested(300000)}}`, /nests deeper than 128 levels/, null],
  ['deeply nested arguments', chat({messages: called(nested(300000))}),
    /messages\[1\]\.tool_calls: arguments: nests deeper than 128 levels/, 'messages'],
];

for (const [name, body, message, param] of table) {
  test(name, async () => {
    const response = await fetch(server.url + '/v1/chat/completions', {method: 'POST', body});
    const answer = await response.json();
    assert.equal(response.status, 400, JSON.stringify(answer));
    assert.match(answer.error.message, message);
    assert.equal(answer.error.type, 'invalid_request_error');
    assert.equal(answer.error.param, param);
    assert.ok('code' in answer.error);
    assert.equal((await fetch(server.url + '/health')).status, 200);
  });
}

test('a body beyond 32 MiB', async () => {
  const {status, text} = await new Promise((resolve, reject) => {
    const request = http.request(server.url + '/v1/chat/completions',
        {method: 'POST', headers: {'Content-Length': 33 << 20}}, (response) => {
          let text = '';
          response.on('data', (data) => text += data);
          response.on('end', () => { resolve({status: response.statusCode, text}); request.destroy(); });
        });
    request.on('error', reject);
    request.write('x'.repeat(33 << 20));
    request.end();
  });
  assert.equal(status, 413);
  assert.match(JSON.parse(text).error.message, /exceeds 32 MiB/);
  assert.equal((await fetch(server.url + '/health')).status, 200);
});

test('a packed body', async () => {
  const post = (encoding, body) => fetch(server.url + '/v1/chat/completions', {
    method: 'POST', headers: {'Content-Encoding': encoding}, body});
  assert.equal((await post('gzip', gzipSync(chat({})))).status, 200);
  for (const [encoding, status, message] of [
      ['br', 415, /^Content-Encoding is br; expected gzip, deflate or none$/],
      ['gzip', 400, /^the request body could not be unpacked from gzip$/]]) {
    const response = await post(encoding, 'x');
    assert.equal(response.status, status);
    assert.match((await response.json()).error.message, message);
  }
});

test('a wrong method', async () => {
  const response = await fetch(server.url + '/v1/chat/completions');
  assert.equal(response.status, 405);
  assert.equal(response.headers.get('allow'), 'POST');
  assert.match((await response.json()).error.message, /\/v1\/chat\/completions answers POST, not GET/);
});

test('an unknown route', async () => {
  const response = await fetch(server.url + '/v2/everything');
  assert.equal(response.status, 404);
  assert.match((await response.json()).error.message, /there is no GET \/v2\/everything/);
});

// Opens a stream and resolves at its first chunk, or at an error answer.
function openStream(url, seed) {
  const body = JSON.stringify({prompt: 'a', max_tokens: 4000, seed, stream: true});
  return new Promise((resolve, reject) => {
    let answer = '';
    const socket = net.connect(Number(new URL(url).port), '127.0.0.1', () => socket.write(
        `POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: ${body.length}\r\n\r\n${body}`));
    socket.on('data', (data) => {
      answer += data;
      if (/data: |"error"/.test(answer)) resolve({socket, answer});
    });
    socket.on('error', reject);
  });
}

test('clients that hang up in mid-stream leave nothing running', async () => {
  const streams = await Promise.all([1, 2, 3, 4, 5].map((seed) => openStream(server.url, seed)));
  assert.ok(await server.metric('fathom_requests_running') > 0, 'all streams ended by themselves');
  for (const {socket} of streams) socket.destroy();
  await server.idle(2000);
});
