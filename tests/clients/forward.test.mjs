// `fathom forward` against the published reference's cases, read by a reader of this file's own.
import assert from 'node:assert/strict';
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {after, test} from 'node:test';
import {root, run} from './server.mjs';

const folder = mkdtempSync(join(tmpdir(), 'fathom-forward-'));
after(() => rmSync(folder, {recursive: true}));

function readSafetensors(file) {
  const bytes = readFileSync(file);
  const headerSize = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + headerSize));
  const arrays = {F32: Float32Array, I32: Int32Array, I64: BigInt64Array};
  const tensors = {};
  for (const [name, {dtype, shape, data_offsets: [begin, end]}] of Object.entries(header)) {
    if (!(dtype in arrays)) continue;
    const start = bytes.byteOffset + 8 + headerSize + begin;
    tensors[name] = {shape, data: new arrays[dtype](bytes.buffer.slice(start, start + end - begin))};
  }
  return tensors;
}

async function forward(name, key, ...more) {
  const out = join(folder, `${name}-${key}.safetensors`);
  const data = `${root}/tests/data/${name}`;
  const result = await run(['forward', '--model', data, '--tokens', `${data}/cases.safetensors:${key}`,
    '--out', out, ...more]);
  assert.equal(result.code, 0, result.stderr);
  return {ours: readSafetensors(out), cases: readSafetensors(`${data}/cases.safetensors`)};
}

function worstDifference(ours, theirs) {
  assert.deepEqual(ours.shape, theirs.shape);
  return ours.data.reduce((worst, x, i) => Math.max(worst, Math.abs(x - theirs.data[i])), 0);
}

// Selections of rows that see more than k keys; the others hold their keys and -1.
function compareSelections(ours, theirs) {
  const [batch, tokens, k] = theirs.shape;
  assert.deepEqual(ours.shape, [batch, tokens, k]);
  for (let row = 0; row < batch * tokens; ++row) {
    const t = row % tokens, mine = [...ours.data.subarray(row * k, (row + 1) * k)];
    const expected = t < k ? Array.from({length: k}, (_, s) => s <= t ? s : -1)
                           : [...theirs.data.subarray(row * k, (row + 1) * k)];
    assert.deepEqual(mine, expected, `row ${row}`);
  }
}

for (const name of ['tiny-bf16', 'tiny-fp8']) {
  test(`plain, ${name}: logits, hidden states and selections of a prefill`, async () => {
    const {ours, cases} = await forward(name, 'plain.long.tokens', '--mode', 'plain', '--dump-layers');
    assert.ok(worstDifference(ours.logits, cases['plain.long.logits']) < 1e-3);
    for (let layer = 0; `plain.long.layer${layer}.hidden` in cases; ++layer) {
      assert.ok(worstDifference(ours[`layer${layer}.hidden`], cases[`plain.long.layer${layer}.hidden`]) < 1e-3);
      compareSelections(ours[`layer${layer}.topk`], cases[`plain.long.layer${layer}.topk`]);
    }
  });

  test(`plain, ${name}: 100 tokens at once, 40 through the cache`, async () => {
    const {ours, cases} = await forward(name, 'plain.decode.tokens', '--mode', 'plain', '--prefill', '100');
    assert.ok(worstDifference(ours.logits, cases['plain.decode.logits']) < 1e-3);
  });

  // Whole passes of deploy are chaotic from layer 1 on; layer 0 takes the embedding.
  test(`deploy, ${name}: layer 0 of a whole pass`, async () => {
    const {ours, cases} = await forward(name, 'deploy.long.tokens', '--mode', 'deploy', '--dump-layers');
    const mine = ours['layer0.hidden'], theirs = cases['deploy.long.layer0.hidden'];
    const [batch, tokens, dim] = theirs.shape;
    assert.deepEqual(mine.shape, theirs.shape);
    let near = 0;
    for (let row = 0; row < batch * tokens; ++row) {
      const values = mine.data.subarray(row * dim, (row + 1) * dim);
      near += values.every((x, i) => Math.abs(x - theirs.data[row * dim + i]) <= 2e-2);
    }
    assert.ok(near >= 0.97 * batch * tokens, `${near} of ${batch * tokens} rows`);
  });
}

test('wrong files and keys are named, and nothing is written', async () => {
  const data = `${root}/tests/data/tiny-bf16`, out = join(folder, 'none.safetensors');
  const cases = `${data}/cases.safetensors`;
  writeFileSync(join(folder, 'junk.safetensors'), 'junk');
  const table = [
    [[`${cases}:no.such.key`], /no\.such\.key/],
    [[cases], /tensors/],
    [[join(folder, 'missing.safetensors')], /missing\.safetensors/],
    [[join(folder, 'junk.safetensors')], /junk\.safetensors/],
    [[`${cases}:plain.long.logits`], /plain\.long\.logits/],
  ];
  table.push([[`${cases}:plain.long.tokens`, '--prefill', '1000'], /--prefill 1000: expected 1 to the \d+ tokens/]);
  for (const [[tokens, ...more], message] of table) {
    const result = await run(['forward', '--model', data, '--tokens', tokens, '--out', out, ...more]);
    assert.equal(result.code, 1, tokens);
    assert.match(result.stderr, message);
    assert.match(result.stderr, /^fathom: [^\n]*\n$/);
    assert.throws(() => readFileSync(out), /ENOENT/);
  }
});
