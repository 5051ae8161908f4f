// Conversations: asking, answering, and moving between them.

let facts; // the model's
let conversations = [];
let current; // none until the server is ready
let attached = []; // data URLs
const running = new Map(); // conversation -> AbortController

async function start() {
  await store.open();
  colours(store.setting("theme") ?? "");
  while (!(await api.ready())) {
    $("banner").hidden = false;
    $("banner").textContent = "The server is starting: it compiles the model's programs.";
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  $("banner").hidden = true;
  const model = await api.model();
  conversations = await store.all();
  facts = model.orthus;
  $("model").textContent = document.title = model.id;
  options.build(facts);
  $("examples").replaceChildren(...facts.examples.map(({ text, respond }) =>
    make("button", { type: "button", textContent: text, onclick: () => ask([{ type: "text", text }], respond) })));
  for (const radio of $("respond").querySelectorAll("input")) radio.disabled = !facts.draws && radio.value === "image";
  $("new").disabled = $("send").disabled = false;
  show(conversations.find((c) => c.id === store.setting("current")) ?? conversations[0] ?? fresh());
  document.body.dataset.ready = "yes";
}

function fresh() {
  const empty = conversations.find((c) => !c.turns.length);
  if (empty) return empty;
  conversations.unshift({ id: crypto.randomUUID?.() ?? String(Math.random()), title: "", changed: Date.now(), turns: [] });
  return conversations[0];
}

function show(conversation) {
  current = conversation;
  store.setting("current", conversation.id);
  closeSide();
  $("log").replaceChildren(...conversation.turns.map(element));
  $("scroll").scrollTop = $("scroll").scrollHeight;
  refresh();
  if (matchMedia("(hover: hover)").matches) $("text").focus();
}

function refresh() {
  showConversations(conversations, current, show);
  $("title").textContent = current.title || "New conversation";
  $("empty").hidden = current.turns.length > 0;
  $("remove").hidden = current.turns.length === 0;
  $("send").textContent = running.has(current) ? "Stop" : "Send";
}

function element(turn) {
  const shown = turn.answers ? answerTurn(turn, facts, acts) : userTurn(turn, facts);
  turn.element = () => shown; // a function, which isn't kept
  return shown;
}

const acts = {
  show(turn, n) {
    turn.shown = (n + turn.answers.length) % turn.answers.length;
    turn.element().again();
    keep(current);
  },
  again: (turn) => answer(current, turn),
  seed(seed) {
    options.set("seed", seed);
    toast(`The next answers have seed ${seed}`, "Undo", () => options.set("seed", ""));
  },
};

// --- asking ---------------------------------------------------------------------------------------------------------

function ask(parts, respond) {
  if (running.has(current)) return;
  const turn = { parts };
  const reply = { answers: [], shown: 0, respond };
  if (!current.turns.length) current.title = parts.find((p) => p.type === "text")?.text.slice(0, 80) ?? "A picture";
  current.turns.push(turn, reply);
  conversations = [current, ...conversations.filter((c) => c !== current)];
  $("log").append(element(turn));
  answer(current, reply);
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function messages(conversation, reply) {
  const until = conversation.turns.indexOf(reply);
  const earlier = options.earlier.checked ? 0 : until - 1;
  return conversation.turns.slice(earlier, until).map((turn) => {
    const parts = (turn.answers?.[turn.shown] ?? turn).parts.filter((p) => p.done === undefined);
    const told = parts.map((p) => (p.type === "text" ? p : { type: "image_url", image_url: { url: p.url } }));
    return turn.answers ? { role: "assistant", parts: told } : { role: "user", content: told };
  }).filter((m) => (m.parts ?? m.content).length);
}

async function answer(conversation, reply) {
  if (running.has(conversation)) return toast("An answer is on its way: stop it first");
  const { seed = Math.floor(Math.random() * 2 ** 31), ...sampling } = options.given();
  const now = { parts: [], seed, state: "running" };
  reply.shown = reply.answers.push(now) - 1;
  const begun = performance.now();
  const control = new AbortController();
  running.set(conversation, control);
  if (reply.element) reply.element().again();
  else $("log").append(element(reply));
  refresh();
  keep(conversation);
  try {
    const body = { messages: messages(conversation, reply), respond: reply.respond, seed, previews: true, ...sampling };
    for await (const choice of api.chat(body, control.signal)) {
      add(now.parts, choice.delta);
      if (choice.finish_reason) now.state = choice.finish_reason === "length" ? "length" : "done";
      following(() => reply.element().update());
      if (choice.delta.images) keep(conversation);
    }
  } catch (e) {
    now.state = control.signal.aborted ? "stopped" : "failed";
    if (!control.signal.aborted) now.error = e.message === "Failed to fetch" ? "the server can't be reached: is it still running?" : e.message;
  }
  now.seconds = (performance.now() - begun) / 1000;
  running.delete(conversation);
  following(() => reply.element().update());
  refresh();
  keep(conversation);
  const words = now.parts.filter((p) => p.type === "text").map((p) => p.text).join(" ");
  $("said").textContent = now.error ?? (words || (now.parts.length ? "A picture is drawn" : "No answer"));
}

// What has come, added to an answer's parts.
function add(parts, delta) {
  const last = parts.at(-1);
  if (delta.content) {
    if (last?.type === "text") last.text += delta.content;
    else parts.push({ type: "text", text: delta.content.trimStart() });
  }
  if (delta.preview) {
    const part = last?.done === undefined ? parts[parts.push({ type: "image" }) - 1] : last;
    [part.url, part.done] = [delta.preview.image_url.url, delta.preview.done];
  }
  for (const image of delta.images ?? []) {
    if (parts.at(-1)?.done !== undefined) parts.pop();
    parts.push({ type: "image", url: image.image_url.url });
  }
}

function keep(conversation) {
  if (!conversations.includes(conversation)) return; // it was deleted while its answer ran
  const turns = conversation.turns.map(({ element, ...turn }) => turn);
  return store.put({ ...conversation, turns });
}

// --- pictures -------------------------------------------------------------------------------------------------------

const LONGEST = 2048; // pixels; a phone's picture needn't be sent whole

async function attachFile(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
    const canvas = make("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    attach(canvas.toDataURL(...(file.type === "image/jpeg" ? ["image/jpeg", 0.95] : ["image/png"])));
  } catch {
    toast(`${file.name || "That"} isn't a picture that this browser can read`);
  }
}

function attach(url, respond) {
  attached.push(url);
  if (respond) $("composer").elements.respond.value = respond;
  showAttached();
  $("text").focus();
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((url, i) => make("div", {},
    make("img", { src: url, alt: "a picture to send", className: "tiny" }),
    make("button", { type: "button", textContent: "✕", ariaLabel: "Leave this picture out", onclick: () => { attached.splice(i, 1); showAttached(); } }))));
  $("text").placeholder = attached.length ? "Ask about the picture, or say what to change" : "Ask for a picture, or about one";
}

// --- what people do -------------------------------------------------------------------------------------------------

function submit() {
  if (!current) return; // what is written waits for the server
  if (running.has(current)) return running.get(current).abort();
  if (!$("composer").reportValidity()) return;
  const text = $("text").value.trim();
  if (!text && !attached.length) return $("text").focus();
  const parts = [...attached.map((url) => ({ type: "image", url })), ...(text ? [{ type: "text", text }] : [])];
  [attached, $("text").value] = [[], ""];
  showAttached();
  grow();
  ask(parts, new FormData($("composer")).get("respond"));
}

function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

function remove() {
  const gone = current;
  running.get(gone)?.abort();
  conversations = conversations.filter((c) => c !== gone);
  store.remove(gone);
  show(conversations[0] ?? fresh());
  toast("The conversation is deleted", "Undo", () => {
    conversations.unshift(gone);
    keep(gone);
    show(gone);
  });
}

function closeSide() {
  document.body.classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
}

function colours(theme) {
  document.documentElement.dataset.theme = theme;
  store.setting("theme", theme);
  const [sign, words] = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] }[theme];
  [$("theme").textContent, $("theme").title] = [sign, `Colours: ${words}`];
  $("theme").setAttribute("aria-label", $("theme").title);
}

const bringsFiles = (e) => e.dataTransfer.types.includes("Files");
const elsewhere = (e) => !e.target.closest("textarea, input"); // where a link that is dropped would take the page's place
const pictures = (list) => [...list].filter((file) => file.type.startsWith("image/"));
$("composer").onsubmit = (e) => { e.preventDefault(); submit(); };
// What is wrong in an option can't be shown behind the fold.
$("composer").addEventListener("invalid", () => ($("options").open = true), true);
$("text").oninput = grow;
$("text").onkeydown = (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); if (!running.has(current)) submit(); }
};
$("composer").onkeydown = (e) => { // on an option it would send the message
  if (e.key === "Enter" && e.target.matches("input:not([type=file])")) e.preventDefault();
};
$("file").onchange = () => { pictures($("file").files).forEach(attachFile); $("file").value = ""; };
document.onpaste = (e) => {
  const files = pictures(e.clipboardData.files);
  if (files.length) { e.preventDefault(); files.forEach(attachFile); }
};
document.ondragover = (e) => {
  if (bringsFiles(e)) { e.preventDefault(); $("box").classList.add("drop"); }
  else if (elsewhere(e)) { e.preventDefault(); e.dataTransfer.dropEffect = "none"; }
};
document.ondragleave = () => $("box").classList.remove("drop");
document.ondrop = (e) => {
  if (bringsFiles(e)) { e.preventDefault(); $("box").classList.remove("drop"); pictures(e.dataTransfer.files).forEach(attachFile); }
  else if (elsewhere(e)) e.preventDefault();
};
document.onkeydown = (e) => {
  if (e.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("open")) closeSide();
  else running.get(current)?.abort();
};
$("new").onclick = () => show(fresh());
$("remove").onclick = remove;
$("theme").onclick = () => colours({ "": "light", light: "dark", dark: "" }[document.documentElement.dataset.theme]);
$("menu").onclick = () => {
  $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("open")));
  $("new").focus();
};
$("shade").onclick = closeSide;
window.onpagehide = () => { // what has come is kept, and its end is a stop rather than a failure
  for (const [conversation, control] of running) { keep(conversation); control.abort(); }
};
start().catch((e) => { $("banner").hidden = false; $("banner").textContent = e.message; });
