import { render } from "./markdown.js";
import { begin, current, load, remove, save, state, title } from "./store.js";

const at = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
let running = null; // the AbortController of the answer that is being made

function button(text, action, label = text) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

function keep() {
  if (!save()) say("This browser keeps nothing: the conversation ends with the page.", true);
}

// --- what is shown ---

function draw() {
  const log = at("log");
  log.replaceChildren(...current().messages.map(article));
  const list = state.conversations.map((each) => {
    const item = document.createElement("li");
    const open = button(title(each), () => choose(each.id));
    open.setAttribute("aria-current", String(each.id === state.current));
    item.append(open, button("\u00d7", () => forget(each.id), `Delete ${title(each)}`));
    return item;
  });
  at("conversations").replaceChildren(...list);
  const had = document.activeElement;
  at("send").hidden = running !== null;
  at("stop").hidden = running === null;
  if (had === at("send") && running) at("stop").focus(); // a button that is hidden keeps no focus
}

function article(message, index) {
  const made = document.createElement("article");
  made.className = message.role;
  const who = document.createElement("h2");
  who.textContent = message.role === "user" ? "You" : "Answer";
  made.append(who);
  if (message.reasoning) {
    const details = document.createElement("details");
    details.className = "reasoning";
    const summary = document.createElement("summary");
    summary.textContent = "Reasoning";
    details.append(summary, message.reasoning);
    made.append(details);
  }
  const body = document.createElement("div");
  body.className = "body";
  if (message.role === "user") body.textContent = message.content;
  else body.append(render(message.content));
  made.append(body);
  if (message.cost) {
    const cost = document.createElement("p");
    cost.className = "cost";
    cost.textContent = costLine(message.cost);
    made.append(cost);
    if (message.cost.misses) made.append(layers(message.cost.misses));
  }
  const tools = document.createElement("div");
  tools.className = "tools";
  if (message.role === "user") tools.append(button("Edit", () => edit(index), "Edit this question"));
  else {
    tools.append(button("Copy", () => copy(message.content), "Copy this answer"));
    tools.append(button("Retry", () => retry(index), "Answer again"));
  }
  made.append(tools);
  return made;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("This browser lets no page copy that is not loaded over TLS or from this machine.", true);
  }
}

function costLine(cost) {
  const parts = [];
  if (cost.tokens_per_second) parts.push(`${cost.tokens_per_second.toFixed(1)} tok/s`);
  if (cost.ttft_ms !== null) parts.push(`TTFT ${(cost.ttft_ms / 1000).toFixed(2)} s`);
  if (cost.hit_rate !== null) parts.push(`hit rate ${(100 * cost.hit_rate).toFixed(1)} %`);
  if (cost.bytes_per_token !== null) parts.push(`${(cost.bytes_per_token / 2 ** 20).toFixed(1)} MiB/token`);
  if (cost.peak_rss_bytes) parts.push(`peak memory ${(cost.peak_rss_bytes / 2 ** 20).toFixed(0)} MiB`);
  if (cost.power_w) parts.push(`${cost.power_w.toFixed(1)} W`);
  return parts.join(", ");
}

// Which layers had to read experts, as one bar each.
function layers(misses) {
  const made = document.createElement("p");
  made.className = "layers";
  made.setAttribute("role", "img");
  const most = Math.max(...misses, 1);
  const named = misses.map((n, layer) => `${layer}: ${n}`).join(", ");
  made.setAttribute("aria-label", `Misses by layer: ${named}`);
  made.title = `Misses by layer: ${named}`;
  for (const n of misses) {
    const bar = document.createElement("span");
    bar.className = `height-${Math.round((8 * n) / most)}`;
    made.append(bar);
  }
  return made;
}

// What the server counts now; null where it does not say.
async function look() {
  try {
    const response = await fetch("slots", { headers: headers() });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}

// Other conversations that were answered meanwhile are in these figures too.
function addFigures(cost, before, after) {
  if (after?.power_w) cost.power_w = after.power_w;
  if (before?.misses_by_layer && after?.misses_by_layer)
    cost.misses = after.misses_by_layer.map((n, layer) => n - before.misses_by_layer[layer]);
}

function showLast(message) {
  const log = at("log");
  const main = log.parentElement;
  const atEnd = main.scrollHeight - main.scrollTop - main.clientHeight < 80;
  const before = log.lastElementChild;
  const wasOpen = before.querySelector("details")?.open ?? false;
  const made = article(message, current().messages.length - 1);
  if (wasOpen) made.querySelector("details")?.setAttribute("open", "");
  const place = focusable(before).indexOf(document.activeElement);
  before.replaceWith(made);
  if (place >= 0) focusable(made)[place]?.focus(); // whoever stands in it stays there
  if (atEnd) main.scrollTop = main.scrollHeight;
}

const focusable = (element) => [...element.querySelectorAll("summary, button, a")];

// Have a screen reader say an answer once, when it is there: piece by piece it would never end.
function speak(text) {
  at("spoken").textContent = render(text).textContent;
}

// --- asking ---

function body(messages) {
  const asked = messages.map(({ role, content, reasoning }) =>
    (reasoning ? { role, content, reasoning_content: reasoning } : { role, content }));
  if (state.settings.system) asked.unshift({ role: "system", content: state.settings.system });
  const found = { messages: asked, stream: true };
  for (const name of NUMBERS) {
    const value = state.settings[name];
    if (value !== undefined && value !== "") found[name] = Number(value);
  }
  return found;
}

const headers = () =>
  (state.settings.key ? { Authorization: `Bearer ${state.settings.key}` } : {});

async function answer() {
  const conversation = current();
  const asked = body(conversation.messages);
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  const mine = new AbortController();
  running = mine;
  draw();
  at("log").setAttribute("aria-busy", "true");
  at("log").parentElement.scrollTop = at("log").parentElement.scrollHeight;
  say("Answering\u2026");
  speak("");
  const before = look();
  let planned = false;
  const show = () => {
    planned = false;
    if (current() === conversation && conversation.messages.at(-1) === message) showLast(message);
  };
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(asked),
      signal: mine.signal,
    });
    if (!response.ok) throw new Error(await problem(response));
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      const delta = chunk.choices[0]?.delta ?? {};
      message.content += delta.content ?? "";
      if (delta.reasoning_content) message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
      if (chunk.remoe_edge) message.cost = chunk.remoe_edge;
      if (!planned) {
        planned = true;
        requestAnimationFrame(show);
      }
    }
    if (message.cost) addFigures(message.cost, await before, await look());
    say("The answer is complete.");
    if (current() === conversation) speak(message.content);
  } catch (error) {
    if (mine.signal.aborted) say("Stopped.");
    else say(error.message, true);
    if (!message.content && !message.reasoning) conversation.messages.pop();
  } finally {
    // Those who have gone elsewhere meanwhile are left there.
    const waits = [document.body, at("stop"), at("question")].includes(document.activeElement);
    const inLog = at("log").contains(document.activeElement);
    running = null;
    at("log").removeAttribute("aria-busy");
    keep();
    draw();
    if (waits) at("question").focus();
    else if (inLog) at("log").focus();
  }
}

async function problem(response) {
  const wait = response.headers.get("Retry-After");
  const again = wait ? ` Try again in ${wait} s.` : "";
  try {
    return (await response.json()).error.message + again;
  } catch {
    return `The server says ${response.status}.${again}`;
  }
}

async function* chunks(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

// --- what a person does ---

function send() {
  const text = at("question").value;
  if (running || !text.trim()) return;
  at("question").value = "";
  current().messages.push({ role: "user", content: text });
  keep();
  answer();
}

function edit(index) {
  if (running) return;
  at("question").value = current().messages[index].content;
  current().messages.length = index;
  keep();
  draw();
  at("question").focus();
}

function retry(index) {
  if (running) return;
  current().messages.length = index;
  answer();
}

function choose(id) {
  if (running) running.abort();
  state.current = id;
  menu(false);
  keep();
  draw();
  at("log").focus();
}

function forget(id) {
  if (running) running.abort();
  remove(id);
  keep();
  draw();
  at("new").focus(); // the button that was pressed is gone
  say("The conversation is deleted.");
}

function menu(open) {
  const was = at("side").classList.contains("open");
  at("side").classList.toggle("open", open);
  at("menu").setAttribute("aria-expanded", String(open));
  if (open) at("new").focus(); // the list comes before its button
  else if (was && at("side").contains(document.activeElement)) at("menu").focus();
}

function theme() {
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  else delete document.documentElement.dataset.theme;
  const name = `Theme: ${state.theme || "system"}`;
  at("theme").setAttribute("aria-label", name);
  at("theme").title = name;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || at("settings").open) return;
  if (running) running.abort();
  else menu(false);
});
at("stop").addEventListener("click", () => running?.abort());
at("new").addEventListener("click", () => {
  if (running) running.abort();
  begin();
  menu(false);
  keep();
  draw();
  at("question").focus();
});
at("menu").addEventListener("click", () => menu(!at("side").classList.contains("open")));
at("theme").addEventListener("click", () => {
  state.theme = { "": "dark", dark: "light", light: "" }[state.theme] ?? "";
  theme();
  keep();
});
at("open-settings").addEventListener("click", () => {
  for (const name of [...NUMBERS, "system", "key"]) at(name).value = state.settings[name] ?? "";
  at("settings").showModal();
});
at("settings").addEventListener("close", () => {
  for (const name of [...NUMBERS, "system", "key"]) state.settings[name] = at(name).value.trim();
  keep();
  describe();
});

async function describe() {
  try {
    const response = await fetch("health");
    const found = await response.json();
    at("model").textContent = found.model;
    document.title = `${found.model} \u2013 remoe-edge`;
    if (found.status === "loading") {
      say("The model is being loaded\u2026");
      setTimeout(describe, 1000);
    } else if (found.status === "ready") say("");
    else say(found.error ?? `The server is ${found.status}.`, true);
  } catch {
    say("The server does not answer.", true);
  }
}

load();
theme();
draw();
describe();
