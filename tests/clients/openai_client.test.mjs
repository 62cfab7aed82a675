// OpenAI's own client against the running program.
import assert from 'node:assert/strict';
import {after, before, test} from 'node:test';
import OpenAI from 'openai';
import {model, run, startServer} from './server.mjs';

let server, client;
before(async () => {
  server = await startServer();
  client = new OpenAI({baseURL: server.url + '/v1', apiKey: 'none', maxRetries: 0});
});
after(() => server.stop());

const messages = [{role: 'user', content: 'Tell me about the weather.'}];
const ask = (more) => client.chat.completions.create({model: 'nano', messages, max_tokens: 24, ...more});

async function collect(stream) {
  const all = {content: '', chunks: []};
  for await (const chunk of stream) {
    all.chunks.push(chunk);
    all.content += chunk.choices[0]?.delta?.content ?? '';
    all.finish_reason = chunk.choices[0]?.finish_reason ?? all.finish_reason;
    all.usage = chunk.usage ?? all.usage;
  }
  return all;
}

test('models are listed', async () => {
  const list = await client.models.list();
  assert.equal(list.data.length, 1);
  assert.equal(list.data[0].object, 'model');
});

test('a whole answer and its usage', async () => {
  const answer = await ask({temperature: 0});
  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.choices[0].message.role, 'assistant');
  assert.ok(['stop', 'length'].includes(answer.choices[0].finish_reason));
  const usage = answer.usage;
  assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  assert.equal(usage.prompt_tokens, usage.prompt_cache_hit_tokens + usage.prompt_cache_miss_tokens);
  assert.ok(usage.completion_tokens <= 24);
});

test('a stream gives the same text, and its usage in the last chunk', async () => {
  const whole = await ask({temperature: 0});
  const streamed = await collect(await ask({temperature: 0, stream: true}));
  assert.equal(streamed.content, whole.choices[0].message.content);
  assert.equal(streamed.finish_reason, whole.choices[0].finish_reason);
  assert.equal(streamed.usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(streamed.chunks[0].choices[0].delta.role, 'assistant');
  const asked = await collect(
      await ask({temperature: 0, stream: true, stream_options: {include_usage: true}}));
  assert.deepEqual(asked.chunks.at(-1).choices, []);
});

test('a seed fixes the answer, another changes it', async () => {
  const text = async (seed) => (await ask({seed})).choices[0].message.content;
  assert.equal(await text(1), await text(1));
  assert.notEqual(await text(1), await text(2));
});

test('answers in a crowd are the same as alone', async () => {
  const text = async (seed) => (await ask({seed})).choices[0].message.content;
  const alone = [await text(11), await text(12), await text(13)];
  assert.deepEqual(await Promise.all([text(11), text(12), text(13)]), alone);
});

test('log-probabilities', async () => {
  const answer = await ask({logprobs: true, top_logprobs: 3, max_tokens: 4, temperature: 0});
  const tokens = answer.choices[0].logprobs.content;
  assert.equal(tokens.length, answer.usage.completion_tokens);
  for (const token of tokens) {
    assert.ok(token.logprob <= 0);
    assert.equal(token.top_logprobs.length, 3);
    assert.equal(token.top_logprobs[0].logprob, token.logprob, 'greedy takes the best');
    assert.ok(token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob);
  }
});

test('stop strings end the text and do not appear', async () => {
  const complete = (more) => client.completions.create(
      {model: 'nano', prompt: 'The function returns', max_tokens: 40, temperature: 0, ...more});
  const full = (await complete({})).choices[0].text;
  const stop = full.slice(9, 14);  // across token boundaries, somewhere in the text
  const cut = await complete({stop: [stop]});
  assert.equal(cut.choices[0].text, full.slice(0, full.indexOf(stop)));
  assert.equal(cut.choices[0].finish_reason, 'stop');
});

test('a stop token ends the text and does not appear', async () => {
  const complete = (more) => client.completions.create(
      {model: 'nano', prompt: 'The function returns', max_tokens: 40, temperature: 0, ...more});
  const [full, {rl_record: {token_ids}}] = await complete({rl_record: true})
    .then(({choices: [choice]}) => [choice.text, choice]);
  const stop = token_ids[5];
  const cut = await complete({stop_token_ids: [stop]});
  assert.equal(cut.usage.completion_tokens, token_ids.indexOf(stop) + 1);
  assert.ok(full.startsWith(cut.choices[0].text) && full !== cut.choices[0].text);
  assert.equal(cut.choices[0].finish_reason, 'stop');
});

test('text completion, streamed and with log-probabilities', async () => {
  const stream = await client.completions.create(
      {model: 'nano', prompt: 'It was', max_tokens: 8, temperature: 0, logprobs: 2, stream: true});
  let text = '', tokens = 0;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.text ?? '';
    tokens += chunk.choices[0]?.logprobs?.tokens.length ?? 0;
  }
  assert.ok(text.length > 0);
  assert.equal(tokens, 8);
});

test('tools are rendered into the prompt, thinking is a mode', async () => {
  const tools = [{type: 'function', function: {name: 'weather', parameters: {type: 'object'}}}];
  const plain = await ask({});
  const withTools = await ask({tools});
  assert.ok(withTools.usage.prompt_tokens > plain.usage.prompt_tokens + 100);
  const none = await ask({tools, tool_choice: 'none'});
  assert.equal(none.usage.prompt_tokens, plain.usage.prompt_tokens);
  const thinking = await ask({thinking: {type: 'enabled'}});
  assert.equal(typeof thinking.choices[0].message.reasoning_content, 'string');
});

const weather = {type: 'function', function: {name: 'weather', parameters: {
  type: 'object', required: ['city', 'days'],
  properties: {city: {enum: ['Rome', 'Oslo']}, days: {type: 'integer'},
               tags: {type: 'array', items: {type: 'string', maxLength: 8}, maxItems: 2}}}}};

test('an answer follows its JSON schema, whatever the model would say', async () => {
  const schema = {
    type: 'object', additionalProperties: false,
    required: ['name', 'size', 'code', 'when', 'share'],
    properties: {name: {type: 'string', maxLength: 12}, size: {type: 'integer'},
                 kind: {enum: ['a', 'b']}, code: {type: 'string', pattern: '^[A-Z]{2}-\\d{1,4}$'},
                 when: {type: 'string', format: 'date-time'},
                 share: {type: 'number', minimum: 0.25, exclusiveMaximum: 0.5}}};
  for (let seed = 0; seed < 8; ++seed) {
    const answer = await ask({seed, temperature: 1, max_tokens: 400, response_format: {
      type: 'json_schema', json_schema: {name: 'thing', strict: true, schema}}});
    assert.equal(answer.choices[0].finish_reason, 'stop');
    const thing = JSON.parse(answer.choices[0].message.content);
    assert.equal(typeof thing.name, 'string');
    assert.ok(Number.isInteger(thing.size));
    assert.ok(thing.kind === undefined || ['a', 'b'].includes(thing.kind));
    assert.match(thing.code, /^[A-Z]{2}-\d{1,4}$/);
    assert.ok(!Number.isNaN(Date.parse(thing.when)), thing.when);
    assert.ok(thing.share >= 0.25 && thing.share < 0.5);
  }
  const any = await ask({max_tokens: 2, response_format: {type: 'json_object'}});
  assert.ok(any.choices[0].message.content.startsWith('{'));
});

test('a required call is made, streamed too', async () => {
  let num_ended = 0;
  for (let seed = 0; seed < 4; ++seed) {
    const request = {model: 'nano', messages, seed, tools: [weather], tool_choice: 'required',
                     max_tokens: 300};
    const answer = await client.chat.completions.create(request);
    const stream = await client.chat.completions.create({...request, stream: true});
    let streamed = '', reason = '';
    for await (const chunk of stream) {
      streamed += chunk.choices[0]?.delta.tool_calls?.[0]?.function.arguments ?? '';
      reason = chunk.choices[0]?.finish_reason ?? reason;
    }
    assert.equal(reason, answer.choices[0].finish_reason);
    if (reason === 'tool_calls') ++num_ended;
    else assert.equal(reason, 'length');  // more and more calls, each of them well formed
    if (!answer.choices[0].message.tool_calls) continue;
    const calls = answer.choices[0].message.tool_calls;
    assert.ok(calls.length >= 1);
    assert.equal(calls.map((call) => call.function.arguments).join(''), streamed);
    for (const call of calls) {
      assert.equal(call.function.name, 'weather');
      const args = JSON.parse(call.function.arguments);
      assert.ok(['Rome', 'Oslo'].includes(args.city));
      assert.ok(Number.isInteger(args.days));
    }
  }
  assert.ok(num_ended > 0);
});

test('a tool turn is accepted back', async () => {
  const turn = [
    ...messages,
    {role: 'assistant', content: '', tool_calls: [
      {id: 'call_1', type: 'function', function: {name: 'weather', arguments: '{"city": "Rome"}'}}]},
    {role: 'tool', tool_call_id: 'call_1', content: 'sunny'},
  ];
  const answer = await client.chat.completions.create({model: 'nano', messages: turn, max_tokens: 4});
  assert.ok(answer.usage.prompt_tokens > 20);
});

test('a prompt seen before is found in the cache, and the answer is the same', async () => {
  const prompt = 'The kernel reads a page. '.repeat(40);
  const ask = () => client.completions.create({model: 'nano', prompt, max_tokens: 8, seed: 4});
  const first = await ask(), second = await ask();
  assert.equal(second.choices[0].text, first.choices[0].text);
  assert.equal(first.usage.prompt_cache_hit_tokens, 0);
  const hit = second.usage.prompt_cache_hit_tokens;
  assert.ok(hit >= 64 && hit % 64 === 0, `hit ${hit}`);
  assert.equal(hit + second.usage.prompt_cache_miss_tokens, second.usage.prompt_tokens);
  assert.equal(second.usage.prompt_tokens_details.cached_tokens, hit);
});

test('an answer that a stop string has ended leaves its prompt in the cache', async () => {
  const prompt = 'The page is read by a kernel. '.repeat(40);
  const ask = () => client.completions.create(
    {model: 'nano', prompt, max_tokens: 60, stop: ['e', ' '], logit_bias: {0: -100, 1: -100}});
  assert.equal((await ask()).usage.prompt_cache_hit_tokens, 0);
  assert.ok((await ask()).usage.prompt_cache_hit_tokens >= 64);
});

test('a call that max_tokens has cut shows no markup', async () => {
  for (let max_tokens = 2; max_tokens <= 32; ++max_tokens) {  // in the middle of a character, too
    const request = {model: 'nano', messages, seed: 1, tools: [weather], tool_choice: 'required', max_tokens};
    const answer = await client.chat.completions.create(request);
    const streamed = await collect(await client.chat.completions.create({...request, stream: true}));
    assert.equal(answer.choices[0].finish_reason, 'length');
    assert.equal(streamed.finish_reason, 'length');
    assert.doesNotMatch(answer.choices[0].message.content + streamed.content, /DSML|function|\ufffd/);
  }
});

test('stop strings do not count within a call, and one call is made where one is asked for', async () => {
  for (let seed = 0; seed < 6; ++seed) {
    const answer = await client.chat.completions.create(
      {model: 'nano', messages, seed, tools: [weather], tool_choice: 'required', max_tokens: 400,
       stop: ['\n\n', 'name', '"'], parallel_tool_calls: false});
    assert.equal(answer.choices[0].finish_reason, 'tool_calls');
    assert.equal(answer.choices[0].message.tool_calls.length, 1);
    assert.ok(['Rome', 'Oslo'].includes(
      JSON.parse(answer.choices[0].message.tool_calls[0].function.arguments).city));
    assert.equal(answer.choices[0].message.content, null);
  }
});

test('a Range header changes no answer', async () => {
  const ask = (headers) => client.chat.completions.create(
    {model: 'nano', messages, seed: 1, max_tokens: 4}, {headers});
  const whole = await ask({}), ranged = await ask({Range: 'bytes=0-9'});
  assert.equal(ranged.choices[0].message.content, whole.choices[0].message.content);
});

test('a stream without text says whose it is', async () => {
  const stream = await client.chat.completions.create(
    {model: 'nano', messages, max_tokens: 1, logit_bias: {1: 100}, stream: true});
  const roles = [];
  for await (const chunk of stream) roles.push(chunk.choices[0]?.delta.role);
  assert.equal(roles[0], 'assistant');
});

test('a record for reinforcement learning: ids, log-probabilities, masks, routing', async () => {
  const ask = (more) => client.completions.create(
      {model: 'nano', prompt: 'Once upon', max_tokens: 6, seed: 1, rl_record: true, ...more});
  const first = (await ask({top_p: 0.9})).choices[0];
  const {prompt_token_ids, token_ids, sampler_logprobs, sampling_masks, routed_experts} =
      first.rl_record;
  assert.equal(token_ids.length, 6);
  assert.equal(sampler_logprobs.length, 6);
  token_ids.forEach((id, i) => assert.ok(sampling_masks[i].includes(id)));
  assert.equal(routed_experts.length, prompt_token_ids.length + 5);
  for (const layers of routed_experts) {
    assert.equal(layers.length, 4);  // nano's MoE layers, two experts a token
    for (const experts of layers) assert.equal(experts.length, 2);
  }
  // The same prompt as ids.
  const second = (await ask({top_p: 0.9, prompt: prompt_token_ids})).choices[0];
  assert.equal(second.text, first.text);
  assert.deepEqual(second.rl_record, first.rl_record);
  await assert.rejects(ask({stream: true}), /rl_record cannot be streamed/);
});

test('a bias of 100 decides', async () => {
  const ask = (logit_bias) => client.completions.create(
      {model: 'nano', prompt: 'The ', max_tokens: 5, temperature: 0, logit_bias, logprobs: 1});
  const plain = await ask({});
  const word = plain.choices[0].logprobs.tokens[0];
  const {stdout} = await run(['tokenize', '--model', model], JSON.stringify('zzz') + '\n');
  const [id] = JSON.parse(stdout);
  const forced = await ask({[id]: 100});
  assert.equal(new Set(forced.choices[0].logprobs.tokens).size, 1);
  assert.notEqual(forced.choices[0].logprobs.tokens[0], word);
});
