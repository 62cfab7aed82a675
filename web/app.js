'use strict';
const byId = (id) => document.getElementById(id);
const examples = [
  ['A novel', 'It was a fine morning in June when Miss'],
  ['Documentation', 'The following options are available:\n\n'],
  ['An address', 'Fellow citizens, the state of our Union is'],
  ['Python', 'def read_file(path):\n    """Return the'],
];
const hint = 'The bundled model is small and only trained to continue text: it chats like a parrot. ' +
    'The tab “Complete” shows it best; a chat model answers here properly.';
let mode = 'complete';
let running = null;  // AbortController of the request under way
let conversation = [];

function showError(text) {
  byId('error').textContent = text;
  byId('error').hidden = !text;
}

function setMode(next) {
  mode = next;
  for (const name of ['complete', 'chat']) {
    byId(name).hidden = name !== mode;
    byId('tab-' + name).setAttribute('aria-selected', String(name === mode));
    byId('tab-' + name).tabIndex = name === mode ? 0 : -1;
  }
  byId('run').textContent = mode === 'chat' ? 'Send' : 'Continue';
  byId('clear').textContent = mode === 'chat' ? 'New chat' : 'Clear';
  showError('');
}

function settings() {
  const value = (id) => (byId(id).value === '' ? undefined : Number(byId(id).value));
  return {
    temperature: value('temperature'), top_p: value('top_p'), max_tokens: value('max_tokens'),
    seed: value('seed'), stream: true,
  };
}

// Calls onChunks with the data lines of a streamed answer, those of a moment at once: a fast model
// would otherwise keep the page from drawing. Throws the server's own error message.
async function stream(path, body, onChunks) {
  running = new AbortController();
  const response = await fetch(path, {
    method: 'POST', headers: {'Content-Type': 'application/json'},
    body: JSON.stringify(body), signal: running.signal,
  });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `the server answered ${response.status}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = '', chunks = [], timer = null;
  const draw = () => {
    clearTimeout(timer);
    timer = null;
    if (chunks.length) onChunks(chunks.splice(0));
  };
  try {
    for (;;) {
      const {value, done} = await reader.read();
      if (done) return;
      pending += value;
      const lines = pending.split('\n');
      pending = lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data: ') || line === 'data: [DONE]') continue;
        const chunk = JSON.parse(line.slice(6));
        if (chunk.error) throw new Error(chunk.error.message);
        chunks.push(chunk);
      }
      timer ??= setTimeout(draw, 30);
    }
  } finally {
    draw();
  }
}

function rate(tokens, start, usage) {
  const seconds = (performance.now() - start) / 1000;
  const prompt = usage ? `${usage.prompt_tokens} + ` : '';
  return `${prompt}${tokens} tokens, ${(tokens / seconds).toFixed(0)} tokens/s`;
}

// Runs one request with the buttons, the error line and the rate kept up to date. False: it failed.
async function run(path, body, onChunks) {
  showError('');
  byId('run').disabled = true;
  byId('stop').hidden = false;
  byId('status').textContent = 'reading the prompt…';
  const start = performance.now();
  let tokens = 0;
  try {
    await stream(path, body, (chunks) => {
      onChunks(chunks);
      const {usage} = chunks.at(-1);
      tokens = usage?.completion_tokens ?? tokens + chunks.length;
      byId('status').textContent = rate(tokens, start, usage);
    });
    return true;
  } catch (error) {
    if (error.name === 'AbortError') {
      byId('status').textContent = `${tokens ? rate(tokens, start) : '0 tokens'} · stopped`;
      return true;
    }
    showError(error.message);
    byId('status').textContent = '';
    return false;
  } finally {
    running = null;
    byId('run').disabled = false;
    byId('stop').hidden = true;
  }
}

async function complete() {
  const area = byId('text');
  area.readOnly = true;
  await run('/v1/completions', {...settings(), prompt: area.value}, (chunks) => {
    const isAtEnd = area.scrollTop + area.clientHeight > area.scrollHeight - 40;
    area.value += chunks.map((chunk) => chunk.choices[0]?.text ?? '').join('');
    if (isAtEnd) area.scrollTop = area.scrollHeight;
  });
  area.readOnly = false;
}

function addMessage(role, text) {
  byId('messages').querySelector('.hint')?.remove();
  const box = document.createElement('div');
  box.className = 'message ' + role;
  const content = document.createElement('span');
  content.textContent = text;
  box.append(content);
  byId('messages').append(box);
  box.scrollIntoView({block: 'nearest'});
  return {box, content, reasoning: null};
}

function addReasoning(message, text) {
  if (!message.reasoning) {
    const details = document.createElement('details');
    const summary = document.createElement('summary');
    summary.textContent = 'Reasoning';
    message.reasoning = document.createElement('span');
    details.append(summary, message.reasoning);
    message.box.prepend(details);
  }
  message.reasoning.textContent += text;
}

async function send() {
  const question = byId('question').value.trim();
  if (!question) return;
  byId('question').value = '';
  const turns = conversation;  // a new chat may begin while the answer comes
  turns.push({role: 'user', content: question});
  const asked = addMessage('user', question);
  const answer = addMessage('assistant', '');
  answer.box.classList.add('waiting');
  const body = {
    ...settings(), messages: turns,
    thinking: {type: byId('thinking').checked ? 'enabled' : 'disabled'},
  };
  const isAnswered = await run('/v1/chat/completions', body, (chunks) => {
    const joined = (key) => chunks.map((chunk) => chunk.choices[0]?.delta?.[key] ?? '').join('');
    const reasoning = joined('reasoning_content'), content = joined('content');
    if (reasoning) addReasoning(answer, reasoning);
    answer.content.textContent += content;
    if (reasoning || content) answer.box.classList.remove('waiting');
    answer.box.scrollIntoView({block: 'nearest'});
  });
  answer.box.classList.remove('waiting');
  if (isAnswered) {
    turns.push({role: 'assistant', content: answer.content.textContent});
    return;
  }
  turns.pop();
  asked.box.remove();
  answer.box.remove();
  if (turns === conversation && !byId('question').value) byId('question').value = question;
}

function startChat() {
  conversation = [];
  const note = document.createElement('p');
  note.className = 'hint';
  note.textContent = hint;
  byId('messages').replaceChildren(note);
}

function clear() {
  running?.abort();
  showError('');
  byId('status').textContent = '';
  if (mode === 'chat') startChat();
  else byId('text').value = '';
  byId(mode === 'chat' ? 'question' : 'text').focus();
}

for (const [name, text] of examples) {
  const chip = document.createElement('button');
  chip.textContent = name;
  chip.onclick = () => {
    running?.abort();
    byId('text').value = text;
    byId('text').focus();
  };
  byId('chips').append(chip);
}
byId('tab-complete').onclick = () => setMode('complete');
byId('tab-chat').onclick = () => setMode('chat');
document.querySelector('nav').addEventListener('keydown', (event) => {
  if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return;
  setMode(mode === 'chat' ? 'complete' : 'chat');
  byId('tab-' + mode).focus();
});
byId('run').onclick = () => (mode === 'chat' ? send() : complete());
byId('stop').onclick = () => running?.abort();
byId('clear').onclick = clear;
document.addEventListener('keydown', (event) => {
  const isRun = event.key === 'Enter' && (event.ctrlKey || event.metaKey ||
      (event.target.id === 'question' && !event.shiftKey));
  if (!isRun || event.isComposing) return;
  event.preventDefault();
  byId('run').click();
});
byId('text').value = examples[0][1];
startChat();
fetch('/v1/models').then((r) => r.json()).then((list) => {
  const model = list.data[0];
  byId('model').textContent = `${model.id}, ${model.context_length} tokens of context`;
}).catch(() => showError('the server does not answer'));
