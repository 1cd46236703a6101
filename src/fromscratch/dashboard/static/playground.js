// The playground: what is picked and typed becomes questions; their answers are shown as they come.
import { ask } from "./playground-ask.js";
import { Bars, TokenText, drawClasses, drawLegend, element } from "./playground-view.js";

const get = (id) => document.getElementById(id);
const OFF = { "top-k": 101, "top-p": 1, "min-p": 0 };
const SETTINGS = ["temperature", "top-k", "top-p", "min-p", "seed", "max-tokens"];
let running = null; // the AbortController of the question that is being answered
let conversation = []; // pairs of message and answer

// What the sliders say, by the names of questions; an off setting is null.
function settings() {
  const value = (id) => (Number(get(id).value) === OFF[id] ? null : Number(get(id).value));
  return { temperature: value("temperature"), top_k: value("top-k"), top_p: value("top-p"), min_p: value("min-p") };
}

function shapeSettings() {
  const { temperature, top_k: topK, top_p: topP, min_p: minP } = settings();
  return { temperature, topK, topP, minP };
}

function whole(id) {
  const { value, min, max } = get(id);
  return Math.min(Number(max), Math.max(Number(min), Math.trunc(Number(value) || 0)));
}

function chosenOption(which) {
  return get(`model-${which}`).selectedOptions[0];
}

function question(kind, which, more) {
  const common = { kind, model: chosenOption(which).value, checkpoint: get(`checkpoint-${which}`).value };
  return kind === "classify" ? { ...common, ...more } : { ...common, ...settings(), seed: whole("seed"), ...more };
}

function describeModel(model, kind = "") {
  if (model.example) return "an example that was made up for this page, not a model";
  const parts = [kind, model.step === null ? "" : `step ${model.step.toLocaleString("en")}`,
    `${model.parameters.toLocaleString("en")} parameters`,
    model.context_length === null ? "" : `context of ${model.context_length.toLocaleString("en")} tokens`,
    `tokenizer ${model.tokenizer}`];
  return parts.filter(Boolean).join(", ");
}

function showNotices(place, notices = []) {
  place.querySelector(".notices").replaceChildren(...notices.map((text) => element("p", { class: "notice", text })));
}

// Runs one task at a time: shows that it runs, lets it be cancelled, and shows why it failed.
async function run(doing, task) {
  if (running) return;
  running = new AbortController();
  const began = performance.now();
  setRunning(doing);
  try {
    await task(running.signal);
    get("status").textContent = `done in ${((performance.now() - began) / 1000).toFixed(1)} s`;
  } catch (error) {
    get("status").textContent = error.name === "AbortError" ? "cancelled" : "";
    if (error.name !== "AbortError") get("problem").textContent = error.message;
  }
  running = null;
  setRunning(null);
}

function setRunning(doing) {
  get("cancel").hidden = !doing;
  for (const one of document.querySelectorAll("#playground .tools button, #playground .setup select")) one.disabled = Boolean(doing);
  if (doing) {
    get("status").textContent = `${doing} …`;
    get("problem").textContent = "";
  } else {
    updateButtons();
    updateCheckpointLists();
  }
}

// One model and its text: the prompt, and the tokens that follow it, which are its own.
class Side {
  constructor(which) {
    this.which = which;
    this.box = get(`side-${which}`);
    this.text = new TokenText(this.box);
    this.bars = new Bars(this.box, (token) => this.pick(token));
    this.reset();
  }

  get isUsed() { return this.which === "a" || get("model-b").value !== "-"; }

  reset() {
    this.chosen = [];
    this.prompt = null;
  }

  // Asks for the text so far and up to maxTokens more.
  async ask(maxTokens, signal) {
    const prompt = get("prompt").value;
    if (this.prompt !== prompt) this.reset();
    this.prompt = prompt;
    const asked = question("continue", this.which, { text: prompt, tokens: [...this.chosen], max_tokens: maxTokens });
    await ask(asked, (message) => this.show(message), signal);
  }

  show(message) {
    if (message.prompt) {
      this.box.querySelector("h2").textContent = message.model.name;
      this.box.querySelector(".about").textContent = describeModel(message.model);
      showNotices(this.box, message.notices);
      this.text.show(message.prompt, message.prompt.length - this.chosen.length);
    }
    if (message.token) {
      this.chosen.push(message.token.id);
      this.text.add(message.token);
    }
    if (message.next) this.bars.show(message.next, shapeSettings());
  }

  pick(token) {
    run("reading", (signal) => {
      if (this.prompt !== get("prompt").value) this.reset();
      this.chosen.push(token.id);
      this.prompt = get("prompt").value;
      return this.ask(0, signal);
    });
  }
}

const sides = [new Side("a"), new Side("b")];

function continueBoth(doing, maxTokens, prepare = () => {}) {
  rememberAddress();
  return run(doing, async (signal) => {
    for (const side of sides.filter((one) => one.isUsed)) {
      prepare(side);
      await side.ask(maxTokens, signal);
    }
  });
}

function chatLine(who, text) {
  const line = element("li", { class: who === "you" ? "asked" : "answer", "data-who": who, text });
  get("chat").append(line);
  return line;
}

function sendMessage() {
  const message = get("message").value;
  if (!message.trim()) return;
  const section = get("mode-chat");
  run("answering", async (signal) => {
    chatLine("you", message);
    get("message").value = "";
    const line = chatLine("model", "");
    const asked = question("chat", "a", { text: message, history: conversation, max_tokens: whole("max-tokens") });
    try {
      await ask(asked, (part) => {
        if (part.prompt !== undefined) {
          section.querySelector(".about").textContent = describeModel(part.model, part.model.name);
          showNotices(section, part.notices);
          get("chat-prompt").textContent = part.prompt;
        }
        if (part.text) line.textContent += part.text;
        if (part.end) line.textContent = part.answer;
      }, signal);
    } finally {
      conversation = [...conversation, [message, line.textContent]].slice(-100);
    }
  });
}

function classify() {
  const section = get("mode-classify");
  run("classifying", (signal) => ask(question("classify", "a", { text: get("to-classify").value }), (found) => {
    section.querySelector(".about").textContent = describeModel(found.model, found.model.name);
    const note = "the probabilities are not calibrated: no temperature was fitted for these weights";
    showNotices(section, found.calibrated ? found.notices : [...found.notices, note]);
    get("class-found").textContent = `Class: ${found.class}`;
    drawClasses(get("classes"), found.probabilities);
  }, signal));
}

function mode() {
  return document.querySelector("input[name=mode]:checked").value;
}

// A classifier only classifies, the example only continues, other models continue and chat.
function updateModes() {
  const kind = chosenOption("a").dataset.kind;
  const possible = { classifier: ["classify"], example: ["next"] }[kind] ?? ["next", "chat"];
  for (const one of document.querySelectorAll("input[name=mode]")) {
    one.disabled = !possible.includes(one.value);
    one.parentElement.title = one.disabled ? "Not with the picked model" : "";
  }
  if (!possible.includes(mode())) document.querySelector(`input[name=mode][value=${possible[0]}]`).checked = true;
  for (const name of ["next", "chat", "classify"]) get(`mode-${name}`).hidden = name !== mode();
  get(`mode-${mode()}`).querySelector(".sampling-place")?.append(get("sampling")); // the settings are near what they change
  for (const one of document.querySelectorAll(".only-next")) one.hidden = mode() !== "next";
  get("side-b").hidden = !sides[1].isUsed;
}

function updateCheckpointLists() {
  for (const which of ["a", "b"]) get(`checkpoint-${which}`).disabled = !chosenOption(which).dataset.steps || Boolean(running);
}

function fillCheckpoints(which) {
  const list = get(`checkpoint-${which}`), steps = chosenOption(which).dataset.steps.split(" ").filter(Boolean);
  const made = steps.map((step) => element("option", { value: `step-${step}`, text: `step ${Number(step).toLocaleString("en")}` }));
  list.replaceChildren(element("option", { value: "", text: steps.length ? "best" : "–" }), ...made);
  const link = get(`run-${which}`);
  link.hidden = !steps.length;
  link.href = `/runs/${get(`model-${which}`).value}`;
  updateCheckpointLists();
}

function updateButtons() {
  const used = sides.filter((one) => one.isUsed);
  get("undo").disabled = get("clear").disabled = !used.some((one) => one.chosen.length);
}

function updateSliders() {
  const say = { temperature: (value) => (value === 0 ? "0 (greedy)" : value.toFixed(2)), "top-k": String, "top-p": (v) => v.toFixed(2), "min-p": (v) => v.toFixed(2) };
  for (const [id, form] of Object.entries(say)) {
    const value = Number(get(id).value);
    const text = value === OFF[id] ? "off" : form(value);
    get(`${id}-shown`).textContent = text;
    get(id).setAttribute("aria-valuetext", text);
  }
  for (const side of sides) side.bars.update(shapeSettings());
}

// The address holds what is picked and typed, so that a view can be bookmarked.
function rememberAddress() {
  const values = new URLSearchParams();
  const keep = (name, value, usual) => { if (value !== usual) values.set(name, value); };
  values.set("model-a", get("model-a").value);
  for (const id of ["checkpoint-a", "model-b", "checkpoint-b"]) keep(id, get(id).value, id === "model-b" ? "-" : "");
  for (const id of SETTINGS) keep(id, get(id).value, get(id).defaultValue);
  keep("mode", mode(), "next");
  if (get("prompt").value.length < 500) keep("prompt", get("prompt").value, get("prompt").defaultValue);
  history.replaceState(null, "", `?${values}`);
}

function setFrom(id, value) {
  const field = get(id);
  if (value === null) return;
  if (!field.options || [...field.options].some((one) => one.value === value)) field.value = value;
  else sayNotHere(value);
}

// The address may name a model or a checkpoint that has been deleted since it was bookmarked.
function sayNotHere(value) {
  let name = value;
  try { name = decodeURIComponent(value); } catch { /* the name is not UTF-8, and is shown as it stands */ }
  get("not-here").hidden = false;
  get("not-here").textContent = `The address names ${name}, which is not here (any more). Pick another above.`;
}

function readAddress() {
  const values = new URLSearchParams(location.search);
  const first = get("model-a").querySelector("option[data-kind=language], option[data-kind=chat], option[data-kind=classifier]");
  setFrom("model-a", values.get("model-a") ?? first?.value ?? null);
  setFrom("model-b", values.get("model-b"));
  for (const which of ["a", "b"]) {
    fillCheckpoints(which);
    setFrom(`checkpoint-${which}`, values.get(`checkpoint-${which}`));
  }
  for (const id of [...SETTINGS, "prompt"]) setFrom(id, values.get(id));
  const wanted = [...document.querySelectorAll("input[name=mode]")].find((one) => one.value === values.get("mode"));
  if (wanted) wanted.checked = true;
}

function changeModel(which) {
  get("not-here").hidden = true;
  fillCheckpoints(which);
  sides.find((side) => side.which === which).reset();
  conversation = [];
  get("chat").replaceChildren();
  updateModes();
  if (mode() === "next" && (which === "a" || sides[1].isUsed)) continueBoth("reading", 0);
  else rememberAddress();
}

function start() {
  readAddress();
  drawLegend(get("legend"));
  updateSliders();
  updateModes();
  updateButtons();
  const press = (id, act) => get(id).addEventListener("click", act);
  const main = { prompt: "predict", message: "send", "to-classify": "classify" };
  press("predict", () => continueBoth("reading", 0));
  press("step", () => continueBoth("choosing a token", 1));
  press("generate", () => continueBoth("generating", whole("max-tokens")));
  press("undo", () => continueBoth("reading", 0, (side) => side.chosen.pop()));
  press("clear", () => continueBoth("reading", 0, (side) => side.reset()));
  press("send", sendMessage);
  press("forget", () => { conversation = []; get("chat").replaceChildren(); get("chat-prompt").textContent = ""; });
  press("classify", classify);
  press("cancel", () => running?.abort());
  for (const [id, button] of Object.entries(main)) {
    get(id).addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) get(button).click();
    });
  }
  get("sampling").addEventListener("input", updateSliders);
  for (const id of SETTINGS) get(id).addEventListener("change", rememberAddress);
  for (const which of ["a", "b"]) {
    get(`model-${which}`).addEventListener("change", () => changeModel(which));
    get(`checkpoint-${which}`).addEventListener("change", () => {
      sides.find((side) => side.which === which).reset();
      if (mode() === "next") continueBoth("reading", 0);
    });
  }
  for (const one of document.querySelectorAll("input[name=mode]")) {
    one.addEventListener("change", () => { updateModes(); rememberAddress(); });
  }
  if (chosenOption("a").dataset.kind === "example") continueBoth("reading", 0);
}

start();
