// What can be chosen of an answer: the model's own sampling, where nothing else is given.

const FIELDS = {
  seed: ["Seed", "another each time"],
  temperature: ["Temperature of words"],
  top_p: ["Top p of words"],
  top_k: ["Top k of words"],
  repetition_penalty: ["Repetition penalty"],
  max_new_tokens: ["Longest answer, positions"],
  max_images: ["Pictures at most", "any number"],
  guidance: ["Guidance by the prompt"],
  image_guidance: ["Guidance by a picture"],
  image_temperature: ["Temperature of pictures"],
  image_top_k: ["Top k of pictures"],
};

const options = {
  build({ sampling, conversation, image_head }) {
    const having = { image_temperature: ["diffusion", "codes", "masked"], image_top_k: ["codes"] };
    const inputs = Object.entries(FIELDS)
      .filter(([name]) => !having[name] || having[name].includes(image_head))
      .map(([name, [label, nothing]]) => {
        const whole = Number.isInteger(sampling[name]) && !["temperature", "guidance"].some((w) => name.includes(w));
        const input = make("input", {
          name, type: "number", step: nothing || whole ? "1" : "any", placeholder: nothing ?? sampling[name], oninput: () => this.changed(),
        });
        return make("label", {}, label, input);
      });
    this.earlier = make("input", { type: "checkbox", name: "earlier", onchange: () => this.changed() });
    this.own = conversation;
    const check = make("label", { className: "check" }, this.earlier, "The model is given what was said before");
    check.title = conversation ? "" : "This one learnt to answer single questions: use a picture again by its button";
    $("fields").replaceChildren(check, ...inputs);
    const kept = store.setting("options") ?? {};
    this.inputs().forEach((i) => (i.value = kept[i.name] ?? ""));
    this.earlier.checked = kept.earlier ?? conversation;
    $("defaults").onclick = () => {
      this.inputs().forEach((i) => (i.value = ""));
      this.earlier.checked = conversation;
      this.changed();
    };
    this.changed();
  },

  inputs: () => [...$("fields").querySelectorAll("input[type=number]")],

  given() {
    return Object.fromEntries(this.inputs().filter((i) => i.value !== "").map((i) => [i.name, Number(i.value)]));
  },

  set(name, value) {
    this.inputs().find((i) => i.name === name).value = value;
    this.changed();
  },

  changed() {
    const given = this.given();
    const words = Object.entries(given).map(([name, value]) => `${name} ${value}`);
    if (this.earlier.checked !== this.own) words.push(this.earlier.checked ? "with what was said before" : "each question alone");
    $("changed").textContent = words.join(" · ");
    store.setting("options", { ...given, ...(this.earlier.checked === this.own ? {} : { earlier: this.earlier.checked }) });
  },
};
