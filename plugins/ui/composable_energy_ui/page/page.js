// The playground: reads the form, sends orders, and shows what happens.
import { drawTrace } from "./charts.js";
import { completion } from "./completion.js";
import { conditionField, sharesBars, slider, statisticsTable, termsTable } from "./parts.js";
import { Stage } from "./stage.js";

const $ = (id) => document.getElementById(id);
const TABS = {
  pictures: { family: null, examples: ["male & ~smiling", "hair=red & old & ~glasses", "male & smiling | ~male & glasses", "glasses ^ hat"] },
  plane: { family: "plane", start: { n: 48 }, examples: ["ring & ~right", "bar | ring", "right ^ near", "moons & ~near", "stripes & near"] },
};
const SETTINGS = [
  ["n", "Images or chains", 16, 1, 64, 1],
  ["steps", "Steps (0: default)", 0, 0, 500, 1],
  ["sharpen", "Sharpening", 1, 0.1, 6, 0.1],
  ["temperature", "Temperature", 1, 0.1, 4, 0.1],
  ["seed", "Seed", 0, 0, 999, 1],
];
const SILENT = { kind: "error", message: "The playground does not answer; is `composable-energy ui` still running?" };
const ENDS = ["result", "cancelled", "error"];
const state = { tab: "pictures", names: [], texts: {}, weights: {}, terms: [], given: {}, conditions: [], job: null, result: null, edit: null };
const stage = new Stage(showTerms);

// The form: weights, conditions, errors at their place, and completion --------------------------------------------------------------
function showWeights(terms, names) {
  $("weights-hint").hidden = names.length <= terms.length;
  if (String(terms) === String(state.terms)) return;
  state.terms = terms;
  $("weights").replaceChildren(...terms.map((term, i) =>
    slider(`weight-${i}`, term, state.weights[term] ?? 1, 0.1, 5, 0.1, (value) => { state.weights[term] = value; })));
}

function showConditions(conditions) {
  if (JSON.stringify(conditions) === JSON.stringify(state.conditions)) return;
  state.conditions = conditions;
  $("conditions").hidden = !conditions.length;
  $("given").replaceChildren(...conditions.map((condition) =>
    conditionField(condition, state.given[condition.name] ?? "", (text) => { state.given[condition.name] = text; })));
}

function showError(error) {
  const text = $("expression").value, mirror = $("mirror");
  $("error").hidden = !error;
  $("error").textContent = error?.message ?? "";
  mirror.textContent = text;
  if (error?.start === undefined) return;
  const mark = document.createElement("mark");
  mark.textContent = text.slice(error.start, Math.max(error.end, error.start + 1)) || " ";
  mirror.replaceChildren(text.slice(0, error.start), mark, text.slice(Math.max(error.end, error.start + 1)));
}

let latest = 0;
async function check() {
  const mine = ++latest, answer = await ask("/api/check", readOrder());
  if (mine !== latest) return;
  showError(answer.kind === "error" && $("expression").value.trim() ? answer : null);
  if (answer.kind !== "ok") return;
  showWeights(answer.terms, answer.names);
  askConditions();
}

// Asks for the conditions of the expression: one request at a time, and again if the expression has changed meanwhile.
let asking = false, asked = null;
async function askConditions() {
  const wanted = () => `${state.tab}: ${$("expression").value}`;
  if (asking || state.job !== null || wanted() === asked) return;
  asking = true;
  const mine = wanted(), answer = await ask("/api/conditions", readOrder());
  asking = false;
  if (mine !== wanted()) return askConditions();
  if (answer.kind !== "conditions") return;
  asked = mine;
  showConditions(answer.conditions);
}

function fitBox() {
  const box = $("expression");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

let pending;
function changed() {
  const box = $("expression");
  $("mirror").textContent = box.value;
  fitBox();
  Object.assign(sessionStorage, { tab: state.tab, expression: box.value });
  clearTimeout(pending);
  pending = setTimeout(check, 250);
}

const complete = completion($("expression"), $("completions"), () => state.names, changed);
$("expression").addEventListener("input", () => { changed(); complete(); });
$("expression").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("order").requestSubmit();
});

function write(text) {
  $("expression").value = text;
  $("completions").hidden = true;
  changed();
}

// Orders -----------------------------------------------------------------------------------------------------------------------------
function readOrder() {
  const order = { expression: $("expression").value, family: TABS[state.tab].family, weights: state.terms.map((term) => state.weights[term] ?? 1) };
  for (const [name] of SETTINGS) order[name] = Number($(name).value);
  order.steps ||= null;
  order.sampler = $("sampler").value || null;
  order.untrained = $("untrained").checked;
  const given = state.conditions.map(({ name }) => [name, (state.given[name] ?? "").trim()]);
  order.given = Object.fromEntries(given.filter(([, text]) => text));
  if (state.edit) order.edit = { ...state.edit, strength: Number($("strength").value) };
  return order;
}

const json = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

async function ask(address, body) {
  try {
    return await (await fetch(address, body && json(body))).json();
  } catch {
    return SILENT;
  }
}

// Sends an order and shows its events; returns whether it came to an end.
async function stream(order) {
  const answer = await fetch("/api/sample", json(order));
  let rest = "", ended = false;
  for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + part).split("\n");
    rest = lines.pop();
    for (const line of lines.filter(Boolean)) ended = (await show(JSON.parse(line))) || ended;
  }
  return (rest && (await show(JSON.parse(rest)))) || ended;
}

function running(yes) {
  $("sample").disabled = yes;
  $("cancel").disabled = !yes;
  for (const name of Object.keys(TABS)) $(`tab-${name}`).disabled = yes;
  if (!yes) $("progress").hidden = true;
}

$("order").onsubmit = async (event) => {
  event.preventDefault();
  if (state.job !== null) return;
  state.job = "";
  $("completions").hidden = true;
  clearResult();
  clearTimeout(pending);
  running(true);
  $("status").textContent = "Waiting ...";
  await check();
  if (matchMedia("(max-width: 760px)").matches) $("result").scrollIntoView();
  try {
    if (!(await stream(readOrder()))) await show(SILENT);
  } catch {
    await show(SILENT);
  }
  state.job = null;
  running(false);
  askConditions();
};

$("cancel").onclick = () => { if (state.job) ask("/api/cancel", { job: state.job }); };

// Shows what runs, and for how many seconds.
function wait(phase, began = Date.now()) {
  clearInterval(state.clock);
  state.began = began;
  const tick = () => { $("status").textContent = `${phase}: ${Math.round((Date.now() - began) / 1000)} s`; };
  tick();
  state.clock = setInterval(tick, 1000);
  $("progress").hidden = false;
  $("progress").removeAttribute("value");
}

const EVENTS = {
  queued({ job, ahead }) {
    state.job = job;
    $("status").textContent = ahead ? `Waiting: ${ahead} before this one.` : "Waiting ...";
  },
  started() { wait("Loading"); },
  conditions(event) { showConditions(event.conditions); },
  async density(event) { await stage.density(event); },
  tuning({ evaluations }) { wait(`Tuning the sampler, ${evaluations} evaluations`, state.began); },
  sampled() { wait("Computing energies and convergence"); },
  progress(event) {
    const of = event.total ? ` of ${event.total}` : "";
    $("status").textContent = `Step ${event.step}${of}, mean energy ${event.energy}`;
    if (event.total) Object.assign($("progress"), { max: event.total, value: event.step });
    stage.points(event);
  },
  result(event) {
    state.result = event;
    stage.finish(event);
    $("status").textContent = `${event.trace.steps.at(-1) ?? 0} steps in ${event.seconds} s with ${event.sampler.split("(")[0]}, seed ${event.seed}` +
      (event.view === "numbers" ? ". These points are no images: save them, or read the numbers below." : "");
    showResult(event);
  },
  cancelled() { $("status").textContent = "Cancelled."; },
  error(event) {
    stage.view(null);
    $("status").textContent = "This did not work; the message is below the expression.";
    showError(event);
    $("error").scrollIntoView({ block: "nearest" });
  },
};

async function show(event) {
  if (event.kind === "progress" || ENDS.includes(event.kind)) clearInterval(state.clock);
  await EVENTS[event.kind]?.(event);
  return ENDS.includes(event.kind);
}

// Results ----------------------------------------------------------------------------------------------------------------------------
function showResult(event) {
  for (const id of ["tools", "cards"]) $(id).hidden = false;
  $("save").hidden = event.view !== "pictures";
  $("edit-start").hidden = event.view !== "pictures";
  $("save").href = event.image ?? "";
  $("save-points").href = `/api/points?job=${state.job}`;
  event.job = state.job;
  $("warnings").replaceChildren(...event.warnings.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
  $("warnings").hidden = !event.warnings.length;
  for (const id of ["command", "python"]) $(id).textContent = event[id];
  document.querySelector("[data-copy=command]").disabled = !event.command;
  drawTrace($("trace"), event.trace);
  showTerms(null);
  const shares = sharesBars(event.terms);
  $("shares-card").hidden = !shares;
  $("shares").innerHTML = shares;
  $("statistics").innerHTML = statisticsTable(event.summary.rows);
  $("facts").textContent = [event.summary.title, ...Object.entries(event.summary.facts).map(([name, value]) => `${name}: ${value}`),
    event.summary.note, ...event.summary.warnings].filter(Boolean).join(" · ");
}

function showTerms(k) {
  $("edit-start").disabled = k === null;
  $("terms-hint").textContent = k === null ? "Click an image or a chain to see its own numbers, or choose it with the arrow keys."
    : `Image or chain ${k + 1} is chosen.`;
  if (state.result) $("terms").innerHTML = termsTable(state.result.terms, k);
}

function clearResult() {
  state.result = null;
  stage.clear();
  for (const id of ["tools", "cards", "warnings"]) $(id).hidden = true;
}

// Tabs, editing and copying ----------------------------------------------------------------------------------------------------------
$("edit-start").onclick = () => {
  state.edit = { job: state.result.job, index: stage.index };
  $("edit-index").textContent = stage.index + 1;
  $("edit").hidden = false;
  $("expression").focus();
};
$("edit-stop").onclick = () => { state.edit = null; $("edit").hidden = true; };
document.querySelectorAll("[data-copy]").forEach((button) => {
  button.onclick = () => {  // the clipboard's own interface is missing at addresses without https
    getSelection().selectAllChildren($(button.dataset.copy));
    const text = button.textContent, copied = document.execCommand("copy");
    button.textContent = copied ? "Copied" : "Selected below: press Ctrl-C";
    setTimeout(() => { button.textContent = text; }, 1500);
  };
});

async function open(tab, text) {
  state.texts[state.tab] = $("expression").value;
  Object.assign(state, { tab, weights: {} });
  showWeights([], []);
  showConditions([]);
  $("edit-stop").onclick();
  clearResult();
  stage.view(null);
  for (const name of Object.keys(TABS)) $(`tab-${name}`).setAttribute("aria-selected", name === tab);
  const { family, examples } = TABS[tab];
  const answer = await ask(`/api/names${family ? `?family=${family}` : ""}`);
  state.names = [...(answer.members ?? []), ...(answer.others ?? [])];
  $("sampler").replaceChildren(new Option("recommended", ""), ...(answer.samplers ?? []).map((name) => new Option(name)));
  for (const [name, , usual] of SETTINGS) Object.assign($(name), { value: TABS[tab].start?.[name] ?? usual }).oninput();
  const shown = answer.family === "faces" || family ? examples : (answer.members ?? []).slice(0, 4);
  $("examples").replaceChildren(...shown.map((example) =>
    Object.assign(document.createElement("button"), { type: "button", textContent: example, onclick: () => write(example) })));
  $("status").textContent = "Type an expression and press Sample.";
  write(text || state.texts[tab] || shown[0] || "");
  clearTimeout(pending);
  await check();
}

$("settings").prepend(...SETTINGS.map((setting) => slider(...setting)));
$("edit-settings").append(slider("strength", "Noise", 0.7, 0.1, 4, 0.1));
for (const tab of Object.keys(TABS)) $(`tab-${tab}`).onclick = () => { if (tab !== state.tab) open(tab); };
addEventListener("resize", fitBox);
$("expression").value = "";
const { tab, expression } = sessionStorage;  // of the page before it was loaded again
await open(tab in TABS ? tab : "pictures", expression);
document.body.dataset.ready = "yes";
