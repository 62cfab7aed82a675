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
const silence = 'the server does not answer; is `fathom serve` still running?';
const endings = {
  length: 'stopped at the token limit',
  insufficient_system_resource: 'cut off: the server is stopping',
};
const dropped = 'dropped';  // why a request was aborted whose answer nobody wants to see
let mode = 'complete';
let running = null;  // mode and AbortController of the request under way
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

// Says which number field cannot be read. Its value is empty, as if it had been left out.
function hasBadNumber() {
  const fields = [...document.querySelectorAll('.grid input')];
  const field = fields.find((input) => input.validity.badInput);
  if (!field) return false;
  const name = field.labels[0].textContent.trim();
  showError(`${name} is not a number; write one, or leave the field empty`);
  field.closest('details').open = true;
  field.focus();
  return true;
}

// A lost connection has other words in each browser, and none of them names the server.
function connected(promise) {
  return promise.catch((error) => {
    throw error instanceof TypeError ? new Error(silence) : error;
  });
}

// Calls onChunks with the data lines of a streamed answer, those of a moment at once: a fast model
// would otherwise keep the page from drawing. Throws the server's own error message.
async function stream(path, body, signal, onChunks) {
  const response = await connected(fetch(path, {
    method: 'POST', headers: {'Content-Type': 'application/json'},
    body: JSON.stringify(body), signal,
  }));
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `the server answered ${response.status}`);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = '', chunks = [], timer = null;
  const draw = () => {
    clearTimeout(timer);
    timer = null;
    if (chunks.length && signal.reason !== dropped) onChunks(chunks.splice(0));
  };
  try {
    for (;;) {
      const {value, done} = await connected(reader.read());
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

// Runs one request with the buttons, the error line and the rate kept up to date. False: the answer
// has not come to its end.
async function run(path, body, onChunks) {
  const controller = new AbortController(), {signal} = controller;
  running = {mode, controller};
  showError('');
  const status = byId('status'), runButton = byId('run'), stopButton = byId('stop');
  stopButton.hidden = false;
  // A button that is disabled or hidden would lose the focus to the page.
  if (document.activeElement === runButton) stopButton.focus();
  runButton.disabled = true;
  status.textContent = 'reading the prompt…';
  const start = performance.now();
  let tokens = 0, ending = '';
  try {
    await stream(path, body, signal, (chunks) => {
      onChunks(chunks);
      const {usage} = chunks.at(-1);
      tokens = usage?.completion_tokens ?? tokens + chunks.length;
      const reason = chunks.map((chunk) => chunk.choices[0]?.finish_reason).find(Boolean);
      if (endings[reason]) ending = ' · ' + endings[reason];
      status.textContent = rate(tokens, start, usage) + ending;
    });
    return true;
  } catch (error) {
    const isStopped = signal.aborted && signal.reason !== dropped;
    status.textContent = isStopped ? `${tokens ? rate(tokens, start) : '0 tokens'} · stopped` : '';
    if (!signal.aborted) showError(error.message);
    return false;
  } finally {
    running = null;
    runButton.disabled = false;
    if (document.activeElement === stopButton) runButton.focus();
    stopButton.hidden = true;
  }
}

// Stops the answer that would go on in what is about to be replaced.
function drop() {
  if (running?.mode === mode) running.controller.abort(dropped);
}

async function complete() {
  const area = byId('text');
  area.readOnly = true;
  await run('/v1/completions', {...settings(), prompt: area.value}, (chunks) => {
    const isAtEnd = area.scrollTop + area.clientHeight > area.scrollHeight - 40;
    const text = chunks.map((chunk) => chunk.choices[0]?.text ?? '').join('');
    const end = area.value.length;
    area.setRangeText(text, end, end, area.selectionStart === end ? 'end' : 'preserve');
    if (isAtEnd) area.scrollTop = area.scrollHeight;
  });
  area.readOnly = false;
}

// Adds a text node: what is appended to its data leaves a selection in it alone.
function addText(element, text) {
  const node = document.createTextNode(text);
  element.append(node);
  return node;
}

function addMessage(role, text) {
  byId('messages').querySelector('.hint')?.remove();
  const box = document.createElement('div');
  box.className = 'message ' + role;
  const content = addText(box.appendChild(document.createElement('span')), text);
  byId('messages').append(box);
  return {box, content, reasoning: null};
}

function addReasoning(message, text) {
  if (!message.reasoning) {
    const details = document.createElement('details');
    const summary = document.createElement('summary');
    summary.textContent = 'Reasoning';
    details.append(summary);
    message.reasoning = addText(details.appendChild(document.createElement('span')), '');
    message.box.prepend(details);
  }
  message.reasoning.appendData(text);
}

// How far an element goes on beneath the bar, which stays at the window's lower edge.
function depthBelowBar(element) {
  return element.getBoundingClientRect().bottom - byId('bar').getBoundingClientRect().top;
}

function isEndInView(box) {
  return depthBelowBar(box) < 40;
}

function scrollToEnd() {
  const ring = 6;  // around the question where it has the focus
  scrollBy(0, Math.max(0, depthBelowBar(byId('question')) + ring));
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
  scrollToEnd();
  const isComplete = await run('/v1/chat/completions', body, (chunks) => {
    const follows = isEndInView(answer.box);
    const joined = (key) => chunks.map((chunk) => chunk.choices[0]?.delta?.[key] ?? '').join('');
    const reasoning = joined('reasoning_content'), content = joined('content');
    if (reasoning) addReasoning(answer, reasoning);
    answer.content.appendData(content);
    if (reasoning || content) answer.box.classList.remove('waiting');
    if (follows) scrollToEnd();
  });
  answer.box.classList.remove('waiting');
  if (turns !== conversation) return;
  if (isEndInView(answer.box)) scrollToEnd();  // how it ended may have made the bar higher
  const text = answer.content.data;
  if (text) turns.push({role: 'assistant', content: text});
  if (isComplete || text || answer.reasoning) return;
  // Nothing came: the question goes back to where it can be asked again.
  turns.pop();
  asked.box.remove();
  answer.box.remove();
  if (!turns.length) startChat();
  if (!byId('question').value) byId('question').value = question;
}

function startChat() {
  conversation = [];
  const note = document.createElement('p');
  note.className = 'hint';
  note.textContent = hint;
  byId('messages').replaceChildren(note);
}

function clear() {
  drop();
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
    drop();
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
byId('run').onclick = () => {
  if (hasBadNumber()) return;
  if (mode === 'chat') send();
  else complete();
};
byId('stop').onclick = () => running?.controller.abort();
byId('clear').onclick = clear;
document.addEventListener('keydown', (event) => {
  // Enter held on Send would press Stop, which then has the focus.
  const isOnButton = event.target.localName === 'button';
  if (event.repeat && event.key === 'Enter' && isOnButton) event.preventDefault();
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
}).catch(() => showError(silence));
