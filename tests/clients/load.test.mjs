// Many requests in a row: every one is answered, none is left behind, memory does not grow.
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import http from 'node:http';
import {after, before, test} from 'node:test';
import {startServer} from './server.mjs';

const kRequests = 10000, kConnections = 32;

let server;
before(async () => { server = await startServer(); });
after(() => server.stop());

const agent = new http.Agent({keepAlive: true, maxSockets: kConnections});

function ask(body) {
  return new Promise((resolve, reject) => {
    const request = http.request(server.url + '/v1/completions', {method: 'POST', agent}, (response) => {
      let text = '';
      response.on('data', (data) => text += data);
      response.on('end', () => resolve({status: response.statusCode, text}));
    });
    request.on('error', reject);
    request.end(JSON.stringify(body));
  });
}

const residentKib = () =>
    Number(readFileSync(`/proc/${server.child.pid}/status`, 'utf8').match(/VmRSS:\s+(\d+)/)[1]);

// A tenth of them are refused, a tenth stream; the others differ in their prompts.
async function askMany(count, first) {
  let next = first;
  const work = async () => {
    for (let i = next++; i < first + count; i = next++) {
      const isBad = i % 10 === 0;
      const {status, text} = await ask({prompt: `request ${i}`, max_tokens: isBad ? -1 : 2,
        seed: i, stream: i % 10 === 1});
      assert.equal(status, isBad ? 400 : 200, text);
    }
  };
  await Promise.all(Array.from({length: kConnections}, work));
}

// A leak grows in every quarter; a peak of many requests at once, or an allocator that keeps what is
// freed (AddressSanitizer's), in some. What is held for good by the second half is bounded, too.
test('10,000 short requests', {timeout: 300000}, async () => {
  const quarter = kRequests / 4, resident = [];
  for (let first = 0; first < kRequests; first += quarter) {
    await askMany(quarter, first);
    resident.push(residentKib());
  }
  await server.idle();
  agent.destroy();
  assert.equal(await server.metric('fathom_requests_waiting'), 0);
  assert.equal(await server.metric('fathom_cache_pages_running'), 0);
  assert.ok(await server.metric('fathom_generated_tokens_total') > kRequests);
  const half = residentKib() - resident[1];
  assert.ok(half < 32 * 1024, `${half} KiB more after the second half`);
  const growth = resident.slice(1).map((kib, i) => kib - resident[i]);
  assert.ok(Math.min(...growth) < 8 * 1024, `${growth} KiB more after each quarter but the first`);
});
