// The server: what the model is, and answers as they come.

const api = {
  headers() {
    const key = sessionStorage.getItem("orthus.key");
    return key ? { Authorization: `Bearer ${key}` } : {};
  },

  async ready() {
    try {
      return (await fetch("health")).ok;
    } catch {
      return false;
    }
  },

  // The model's entry; asks for the key where one is wanted.
  async model() {
    for (;;) {
      const response = await fetch("v1/models", { headers: this.headers() });
      if (response.ok) return (await response.json()).data[0];
      if (response.status !== 401) throw new Error(await said(response));
      await askForKey();
    }
  },

  // Yields the deltas of a chat's one choice; the last value has a finish_reason.
  async *chat(body, signal) {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...this.headers() },
      body: JSON.stringify({ ...body, stream: true }),
      signal,
    });
    if (!response.ok) throw new Error(await said(response));
    let text = "";
    for await (const piece of pieces(response.body)) {
      text += piece;
      const events = text.split("\n\n");
      text = events.pop();
      for (const event of events) {
        if (event.startsWith(":")) continue; // the server lives
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") return;
        const message = JSON.parse(data);
        if (message.error) throw new Error(message.error.message);
        if (message.choices[0]) yield message.choices[0];
      }
    }
    throw new Error("the server ended the answer early: is it still running?");
  },
};

async function* pieces(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function said(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

function askForKey() {
  const dialog = document.getElementById("key");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const input = dialog.querySelector("[name=key]");
      sessionStorage.setItem("orthus.key", input.value);
      input.value = "";
      resolve();
    }, { once: true });
  });
}
