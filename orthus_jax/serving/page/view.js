// From a conversation to what is seen of it.

const $ = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const { dataset, ...own } = properties;
  const element = Object.assign(document.createElement(tag), own);
  Object.assign(element.dataset, dataset);
  element.append(...children.filter((c) => c !== null));
  return element;
}

function small(text, act, title = "") {
  return make("button", { type: "button", className: "small", textContent: text, title, onclick: act });
}

// A turn's parts as elements, one each, brought up to date in place so that nothing flickers while an answer comes.
function showParts(element, parts, { facts, own }) {
  parts.forEach((part, i) => {
    let shown = element.children[i];
    if (!shown) {
      shown = part.type === "text" ? make("p") : picture(own);
      element.append(shown);
    }
    if (part.type === "text") {
      if (shown.textContent !== part.text) shown.textContent = part.text;
    } else {
      showPicture(shown, part, facts);
    }
  });
  while (element.children.length > parts.length) element.lastChild.remove();
}

function picture(own) {
  const image = make("img", { alt: own ? "a picture of yours" : "a picture that was drawn" });
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 160);
  const frame = make("button", { type: "button", className: "frame", title: "Look at it large" }, image);
  frame.onclick = () => {
    if (frame.parentElement.classList.contains("making")) return;
    const large = $("large").querySelector("img");
    [large.src, large.className, large.alt] = [image.src, image.className, image.alt];
    $("large").showModal();
  };
  return make("figure", {}, frame);
}

function showPicture(figure, part, { patches }) {
  const [frame, image] = [figure.firstChild, figure.querySelector("img")];
  if (image.getAttribute("src") !== part.url) image.src = part.url;
  const making = part.done !== undefined;
  figure.classList.toggle("making", making);
  let progress = figure.querySelector("progress");
  if (making) {
    progress ??= frame.appendChild(make("progress", { max: patches, ariaLabel: "how much of the picture is drawn" }));
    progress.value = part.done;
  } else if (progress || figure.children.length === 1) {
    progress?.remove();
    figure.append(make("figcaption", {},
      small("Edit", () => attach(part.url, "image"), "Say what to change in this picture"),
      small("Ask", () => attach(part.url, "text"), "Ask about this picture"),
      small("Save", () => make("a", { href: part.url, download: "picture.png" }).click(), "Save it as a file"),
    ));
  }
}

function userTurn(turn, facts) {
  const element = make("article", { className: "turn user", ariaLabel: "You" });
  showParts(element, turn.parts, { facts, own: true });
  return element;
}

// An answer's element has its parts, then a line beneath them.
function answerTurn(turn, facts, act) {
  const [parts, below] = [make("div", { className: "turn" }), make("div")];
  const element = make("article", { className: "turn answer", ariaLabel: "The model" }, parts, below);
  element.update = () => {
    const answer = turn.answers[turn.shown];
    parts.classList.toggle("waiting", answer.state === "running" && answer.parts.at(-1)?.done === undefined);
    showParts(parts, answer.parts, { facts, own: false });
    const state = `${answer.state} ${turn.shown} ${turn.answers.length} ${answer.error ?? ""} ${answer.seconds}`;
    if (below.dataset.state === state) return;
    below.dataset.state = state;
    below.replaceChildren(...beneath(turn, answer, act));
  };
  element.again = () => {
    parts.replaceChildren(); // another answer's parts are other kinds of elements
    element.update();
  };
  element.update();
  return element;
}

const NOTES = { stopped: "stopped", length: "reached its longest", failed: "" };

function beneath(turn, answer, act) {
  if (answer.state === "running") return [];
  const error = answer.error ? make("p", { className: "error", role: "alert", textContent: answer.error }) : null;
  const text = answer.parts.filter((p) => p.type === "text").map((p) => p.text).join("\n");
  const several = turn.answers.length > 1;
  const footer = make("footer", {},
    several ? small("‹", () => act.show(turn, turn.shown - 1), "The answer before") : null,
    several ? make("span", { textContent: `${turn.shown + 1} / ${turn.answers.length}` }) : null,
    several ? small("›", () => act.show(turn, turn.shown + 1), "The next answer") : null,
    small("Again", () => act.again(turn), "Another answer, with another seed"),
    text && navigator.clipboard ? small("Copy", () => navigator.clipboard.writeText(text).then(() => toast("Copied")), "Copy the words") : null,
    small(`seed ${answer.seed}`, () => act.seed(answer.seed), "Use this seed for the next answers"),
    answer.seconds ? make("span", { textContent: `${answer.seconds.toFixed(1)} s` }) : null,
    NOTES[answer.state] ? make("span", { textContent: NOTES[answer.state] }) : null,
  );
  return error ? [error, footer] : [footer];
}

function showConversations(all, current, open) {
  $("conversations").replaceChildren(...all.map((c) => {
    const button = make("button", { type: "button", textContent: c.title || "New conversation", onclick: () => open(c) });
    if (c === current) button.setAttribute("aria-current", "true");
    return make("li", {}, button);
  }));
}

function toast(text, action, act) {
  const place = $("toast");
  place.replaceChildren(text, ...(action ? [make("button", { type: "button", textContent: action, onclick: () => { place.classList.remove("on"); act(); } })] : []));
  place.classList.add("on");
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => place.classList.remove("on"), action ? 8000 : 3000);
}

// Follows what comes as long as the reader is at the end.
function following(change) {
  const area = $("scroll");
  const atEnd = area.scrollHeight - area.scrollTop - area.clientHeight < 80;
  change();
  if (atEnd) area.scrollTop = area.scrollHeight;
}
