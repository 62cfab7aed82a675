// Starts the program under test for one test file and stops it afterwards.
import assert from 'node:assert/strict';
import {spawn} from 'node:child_process';
import {readFileSync} from 'node:fs';

export const root = process.env.FATHOM_ROOT ?? new URL('../..', import.meta.url).pathname;
export const binary = process.env.FATHOM_BINARY ?? `${root}/build/fathom`;
export const model = process.env.FATHOM_MODEL ?? `${root}/models/nano`;
// The longest prompt and answer that the model takes, in tokens.
export const context =
  JSON.parse(readFileSync(`${model}/config.json`, 'utf8')).max_position_embeddings;
export const output = process.env.FATHOM_TEST_OUTPUT ?? '/tmp';

// Runs a command to its end: {code, stdout, stderr}.
export function run(args, input = '') {
  return new Promise((resolve) => {
    const child = spawn(binary, args);
    let stdout = '', stderr = '';
    child.stdout.on('data', (data) => stdout += data);
    child.stderr.on('data', (data) => stderr += data);
    child.on('close', (code) => resolve({code, stdout, stderr}));
    child.stdin.end(input);
  });
}

export async function startServer(...args) {
  const folder = args.includes('--model') ? [] : ['--model', model];
  const child = spawn(binary, ['serve', ...folder, '--port', '0', ...args]);
  let log = '';
  child.stderr.on('data', (data) => log += data);
  const url = await new Promise((resolve, reject) => {
    child.stdout.on('data', (data) => {
      log += data;
      const found = log.match(/listening on (http:\/\/\S+)/);
      if (found) resolve(found[1]);
    });
    child.on('exit', (code) => reject(new Error(`the server ended with ${code}: ${log}`)));
  });
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({code, signal})));
  return {
    url, child, ended,
    async stop() {
      child.kill('SIGTERM');
      assert.deepEqual(await ended, {code: 0, signal: null}, log);
    },
    async atWork() {  // in one answer: a request that begins is not missed
      const text = await (await fetch(url + '/metrics')).text();
      const counts = [...text.matchAll(/^fathom_requests_\w+ (\d+)/mg)];
      return counts.reduce((sum, [, count]) => sum + Number(count), 0);
    },
    async metric(name) {
      const text = await (await fetch(url + '/metrics')).text();
      return Number(text.match(new RegExp(`^${name} (\\d+)`, 'm'))[1]);
    },
    // Waits until nothing runs or waits any more.
    async idle(timeout_ms = 5000) {
      const end = Date.now() + timeout_ms;
      while (await this.atWork() > 0) {
        assert.ok(Date.now() < end, `requests still run after ${timeout_ms} ms`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    },
  };
}
