// The playground: reads the form, sends orders, and shows what happens.
import { Plane, drawTrace } from "./charts.js";
import { completion } from "./completion.js";
import { sharesBars, slider, statisticsTable, termsTable } from "./parts.js";

const $ = (id) => document.getElementById(id);
const plane = new Plane($("plane"));
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
const state = { tab: "pictures", names: [], texts: {}, weights: {}, terms: [], job: null, result: null, chosen: null, edit: null };

function showWeights(terms) {
  if (String(terms) === String(state.terms)) return;
  state.terms = terms;
  $("weights").replaceChildren(...terms.map((term, i) =>
    slider(`weight-${i}`, term, state.weights[term] ?? 1, 0.1, 5, 0.1, (value) => { state.weights[term] = value; })));
}

// The expression: errors at their place, and completion ------------------------------------------------------------------------------
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
  const mine = ++latest, answer = await post("/api/check", readOrder());
  if (mine !== latest) return;
  showError(answer.kind === "error" && $("expression").value.trim() ? answer : null);
  if (answer.kind === "ok") showWeights(answer.terms);
}

let pending;
function changed() {
  $("mirror").textContent = $("expression").value;
  clearTimeout(pending);
  pending = setTimeout(check, 250);
  complete();
}

const complete = completion($("expression"), $("completions"), () => state.names, changed);
$("expression").addEventListener("input", changed);
$("expression").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("order").requestSubmit();
});

// Orders -----------------------------------------------------------------------------------------------------------------------------
function readOrder() {
  const order = { expression: $("expression").value, family: TABS[state.tab].family, weights: state.terms.map((term) => state.weights[term] ?? 1) };
  for (const [name] of SETTINGS) order[name] = Number($(name).value);
  order.steps ||= null;
  order.sampler = $("sampler").value || null;
  if (state.edit) order.edit = { ...state.edit, strength: Number($("strength").value) };
  return order;
}

async function post(address, body) {
  try {
    const answer = await fetch(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
    return await answer.json();
  } catch {
    return { kind: "error", message: "The playground does not answer; is `composable-energy ui` still running?" };
  }
}

$("order").onsubmit = async (event) => {
  event.preventDefault();
  if (state.job !== null) return;
  state.job = "";
  stop();
  clearTimeout(pending);
  await check();
  $("sample").disabled = true;
  $("cancel").disabled = false;
  $("status").textContent = "Waiting for the first step ...";
  try {
    const answer = await fetch("/api/sample", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(readOrder()) });
    let rest = "";
    for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + part).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) await show(JSON.parse(line));
    }
    if (rest) await show(JSON.parse(rest));
  } catch (error) {
    await show({ kind: "error", message: `The playground does not answer: ${error.message}` });
  }
  state.job = null;
  $("sample").disabled = false;
  $("cancel").disabled = true;
  $("progress").hidden = true;
};

$("cancel").onclick = () => { if (state.job) post("/api/cancel", { job: state.job }); };

const EVENTS = {
  queued(event) {
    state.job = event.job;
    $("status").textContent = event.ahead ? `Waiting: ${event.ahead} before this one.` : "Waiting ...";
  },
  started() {
    const began = Date.now();
    const tick = () => { $("status").textContent = `Loading and tuning: ${Math.round((Date.now() - began) / 1000)} s`; };
    tick();
    state.clock = setInterval(tick, 1000);
    $("progress").hidden = false;
    $("progress").removeAttribute("value");
  },
  async density(event) { view("plane"); plane.clear(); await plane.density(event); },
  progress(event) {
    const of = event.total ? ` of ${event.total}` : "";
    $("status").textContent = `Step ${event.step}${of}, mean energy ${event.energy}`;
    if (event.total) Object.assign($("progress"), { max: event.total, value: event.step });
    points(event);
  },
  result(event) {
    state.result = event;
    points(event);
    if (event.paths) play(event.paths);
    $("status").textContent = `${event.trace.steps.at(-1) ?? 0} steps in ${event.seconds} s with ${event.sampler.split("(")[0]}, seed ${event.seed}` +
      (event.view === "numbers" ? ". These points are no images: save them, or read the numbers below." : "");
    showResult(event);
  },
  cancelled() { $("status").textContent = "Cancelled."; },
  error(event) { view(null); $("status").textContent = "This did not work."; showError(event); },
};

async function show(event) {
  if (event.kind !== "density") clearInterval(state.clock);
  await EVENTS[event.kind]?.(event);
}

function view(kind) {
  $("grid").hidden = kind !== "pictures";
  $("plane").hidden = kind !== "plane";
}

function points(event) {
  if (event.image) {
    const grid = $("grid");
    grid.onload = () => { grid.style.width = `${grid.naturalWidth * Math.max(1, Math.floor(640 / grid.naturalWidth))}px`; };
    grid.src = event.image;
    view("pictures");
  } else if (event.points[0]?.length === 2) {
    view("plane");
    plane.show([event.points]);
  }
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
  showTerms();
  const shares = sharesBars(event.terms);
  $("shares-card").hidden = !shares;
  $("shares").innerHTML = shares;
  $("statistics").innerHTML = statisticsTable(event.summary.rows);
  $("facts").textContent = [event.summary.title, ...Object.entries(event.summary.facts).map(([name, value]) => `${name}: ${value}`),
    event.summary.note, ...event.summary.warnings].filter(Boolean).join(" · ");
}

function showTerms() {
  const k = state.chosen;
  $("terms-hint").textContent = k === null ? "Click an image or a chain to see its own numbers." : `Image or chain ${k + 1} is chosen.`;
  $("terms").innerHTML = termsTable(state.result.terms, k);
}

function choose(k) {
  state.chosen = k;
  $("edit-start").disabled = k === null;
  if (state.result) showTerms();
}

$("grid").onclick = (event) => {
  const { n, columns, rows } = state.result ?? {}, grid = $("grid");
  if (!n) return;
  const column = Math.floor((event.offsetX / grid.clientWidth) * columns), row = Math.floor((event.offsetY / grid.clientHeight) * rows);
  const k = row * columns + column;
  if (k >= n) return;
  const across = (grid.clientWidth + 2) / columns, down = (grid.clientHeight + 2) / rows;
  Object.assign($("chosen").style, { left: `${column * across}px`, top: `${row * down}px`, width: `${across - 4}px`, height: `${down - 4}px` });
  $("chosen").hidden = false;
  choose(k);
};

$("plane").onclick = (event) => {
  if (!state.result?.paths) return;
  plane.chosen = plane.nearest(event.offsetX / $("plane").clientWidth, event.offsetY / $("plane").clientHeight);
  plane.draw();
  choose(plane.chosen);
};

// Chains that move -------------------------------------------------------------------------------------------------------------------
let timer;
function play(paths) {
  $("player").hidden = false;
  $("frame").max = paths.length - 1;
  const step = (frame) => {
    plane.show(paths, frame);
    $("frame").value = frame;
    $("frame-step").textContent = `step ${state.result.trace.steps[frame] ?? frame + 1}`;
  };
  const advance = () => {
    step(Math.min(Number($("frame").value) + 1, paths.length - 1));
    if (Number($("frame").value) === paths.length - 1) pause();
  };
  const pause = () => { clearInterval(timer); timer = null; $("play").textContent = "Play"; };
  const run = () => { clearInterval(timer); timer = setInterval(advance, 50); $("play").textContent = "Pause"; };
  $("play").onclick = () => {
    if (timer) return pause();
    if (Number($("frame").value) === paths.length - 1) $("frame").value = 0;
    run();
  };
  $("frame").oninput = () => { pause(); step(Number($("frame").value)); };
  $("frame").value = 0;
  run();
}

function stop() {
  clearInterval(timer);
  timer = null;
  for (const id of ["tools", "cards", "player", "warnings", "chosen"]) $(id).hidden = true;
  Object.assign(state, { result: null, chosen: null });
  plane.chosen = null;
  choose(null);
}

// Tabs, editing and copying ----------------------------------------------------------------------------------------------------------
$("edit-start").onclick = () => {
  state.edit = { job: state.result.job, index: state.chosen };
  $("edit-index").textContent = state.chosen + 1;
  $("edit").hidden = false;
  $("expression").focus();
};
$("edit-stop").onclick = () => { state.edit = null; $("edit").hidden = true; };
document.querySelectorAll("[data-copy]").forEach((button) => {
  button.onclick = async () => {
    await navigator.clipboard.writeText(state.result[button.dataset.copy]);
    const text = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = text; }, 1200);
  };
});

async function open(tab) {
  state.texts[state.tab] = $("expression").value;
  Object.assign(state, { tab, weights: {}, terms: [] });
  $("edit-stop").onclick();
  stop();
  view(null);
  for (const name of Object.keys(TABS)) $(`tab-${name}`).setAttribute("aria-selected", name === tab);
  const { family, examples } = TABS[tab];
  const answer = await (await fetch(`/api/names${family ? `?family=${family}` : ""}`)).json();
  state.names = [...(answer.members ?? []), ...(answer.others ?? [])];
  $("sampler").replaceChildren(new Option("recommended", ""), ...(answer.samplers ?? []).map((name) => new Option(name)));
  for (const [name, , usual] of SETTINGS) Object.assign($(name), { value: TABS[tab].start?.[name] ?? usual }).oninput();
  const usual = answer.family === "faces" || family;
  const shown = usual ? examples : (answer.members ?? []).slice(0, 4);
  $("examples").replaceChildren(...shown.map((text) => Object.assign(document.createElement("button"), {
    type: "button", textContent: text, onclick: () => { $("expression").value = text; changed(); $("completions").hidden = true; } })));
  $("expression").value = state.texts[tab] || shown[0] || "";
  $("status").textContent = "Type an expression and press Sample.";
  await check();
}

$("settings").prepend(...SETTINGS.map((setting) => slider(...setting)));
$("edit-settings").append(slider("strength", "Noise", 0.7, 0.1, 4, 0.1));
for (const tab of Object.keys(TABS)) $(`tab-${tab}`).onclick = () => { if (state.job === null && tab !== state.tab) open(tab); };
$("expression").value = "";
await open("pictures");
document.body.dataset.ready = "yes";
