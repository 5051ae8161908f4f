// Conversations, kept in this browser alone.

const store = {
  async open() {
    this.db = await new Promise((resolve) => {
      const request = indexedDB.open("orthus", 1);
      request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null); // a private window: nothing is kept
    });
  },

  do(mode, what) {
    if (!this.db) return Promise.resolve([]);
    return new Promise((resolve, reject) => {
      const transaction = this.db.transaction("conversations", mode);
      const request = what(transaction.objectStore("conversations"));
      transaction.commit(); // at once: the page may be about to be left
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  },

  // Newest first. What was under way when the page was left has been given up.
  async all() {
    const found = await this.do("readonly", (s) => s.getAll());
    for (const conversation of found)
      for (const turn of conversation.turns)
        for (const answer of turn.answers ?? []) if (answer.state === "running") answer.state = "stopped";
    return found.sort((a, b) => b.changed - a.changed);
  },

  put(conversation) {
    conversation.changed = Date.now();
    return this.do("readwrite", (s) => s.put(conversation)).catch(() => toast("This browser's store is full: the conversation isn't kept"));
  },

  remove(conversation) {
    return this.do("readwrite", (s) => s.delete(conversation.id));
  },

  setting(name, value) {
    try {
      if (value === undefined) return JSON.parse(localStorage.getItem(`orthus.${name}`));
      localStorage.setItem(`orthus.${name}`, JSON.stringify(value));
    } catch {
      return null;
    }
  },
};
