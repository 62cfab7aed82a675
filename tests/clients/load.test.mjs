// Many requests in a row: every one is answered, none is left behind, memory does not grow.
import assert from 'node:assert/strict';
import {readFileSync} from 'node:fs';
import http from 'node:http';
import {after, before, test} from 'node:test';
import {startServer} from './server.mjs';

const kRequests = 10000, kConnections = 32;
const kHeapBytes = 16 * 1024;  // 6 bytes a request

let server;
before(async () => {
  // Freed pieces that glibc keeps for each of 130 threads would count as allocated: 20 to 140 KB more
  // a quarter, where 3 KB are.
  process.env.GLIBC_TUNABLES = 'glibc.malloc.tcache_count=0';
  server = await startServer();
});
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

// A leak grows with every part: what is allocated and not freed is counted when no request runs, and
// a server whose threads still find their buffers gets a few parts more. The resident size also
// holds what the allocator keeps. AddressSanitizer's keeps freed pieces of each size for each of the
// server's threads, so that it is no measure there.
test('10,000 short requests', {timeout: 300000}, async () => {
  const part = kRequests / 4, resident = [], heap = [];
  const growth = (values) => values.slice(1).map((value, i) => value - values[i]);
  const grows = () => Math.min(...growth(heap)) >= kHeapBytes;
  for (let i = 0; i < 4 || (i < 8 && grows()); ++i) {
    await askMany(part, i * part);
    await server.idle();
    resident.push(residentKib());
    heap.push(await server.metric('fathom_heap_bytes'));
  }
  agent.destroy();
  assert.equal(await server.metric('fathom_requests_waiting'), 0);
  assert.equal(await server.metric('fathom_cache_pages_running'), 0);
  assert.ok(await server.metric('fathom_generated_tokens_total') > kRequests);
  assert.ok(!grows(), `${growth(heap)} bytes more after each part`);
  if (process.env.ASAN_OPTIONS) return;
  assert.ok(resident.at(-1) - resident[1] < 32 * 1024, `${resident.at(-1) - resident[1]} KiB more`);
  assert.ok(Math.min(...growth(resident)) < 8 * 1024, `${growth(resident)} KiB more`);
});
