// Parts of the page: sliders, and tables of numbers as HTML.

export function slider(id, name, value, least, most, step, change = () => {}) {
  const row = document.createElement("div");
  row.className = "slider";
  const label = Object.assign(document.createElement("label"), { textContent: name, title: name, htmlFor: id });
  const range = Object.assign(document.createElement("input"), { type: "range", min: least, max: most, step, value });
  range.setAttribute("aria-label", name);
  const number = Object.assign(document.createElement("input"), { type: "number", id, min: least, step: "any", value });
  range.oninput = () => { number.value = range.value; change(Number(range.value)); };
  number.oninput = () => { range.value = number.value; change(Number(number.value)); };
  row.append(label, range, number);
  return row;
}

// A field for the value of a condition: a number, or several with commas.
export function conditionField({ name, required }, text, change) {
  const row = document.createElement("div");
  row.className = "slider";
  const label = Object.assign(document.createElement("label"), { textContent: name, title: name, htmlFor: `given-${name}` });
  const box = Object.assign(document.createElement("input"), { type: "text", id: `given-${name}`, value: text, autocomplete: "off" });
  box.placeholder = required ? "needed" : "optional";
  box.setAttribute("aria-describedby", "given-hint");
  box.oninput = () => change(box.value);
  row.append(label, box);
  return row;
}

const mean = (values) => values.reduce((sum, value) => sum + Number(value), 0) / values.length;
const format = (value) => (Number.isFinite(Number(value)) ? Number(value).toFixed(3) : String(value ?? "–").replace("Infinity", "∞"));
const cell = (tag, text, kind = "") => `<${tag} class="${kind}">${String(text).replace(/[&<>]/g, (c) => `&#${c.charCodeAt(0)};`)}</${tag}>`;
const plain = (text) => text.replace(/\.at\([^()]*\)/g, "");

// The energy and the probability of each term: over all points, and of the chosen one.
export function termsTable(terms, k) {
  const some = k !== null, likely = terms.some((row) => row.probability);
  const head = ["", "mean", "lowest", "highest", ...(likely ? ["mean probability"] : [])].map((name) => cell("th", name));
  if (some) head.push(cell("th", "chosen", "chosen"), likely ? cell("th", "its probability", "chosen") : "");
  const rows = terms.map(({ depth, expression: text, energy, probability }) => {
    const values = energy.map(Number), cells = [cell("td", "\u2003".repeat(depth) + plain(text))];
    cells.push(...[mean(values), Math.min(...values), Math.max(...values)].map((value) => cell("td", format(value))));
    if (likely) cells.push(cell("td", probability ? format(mean(probability)) : ""));
    if (some) cells.push(cell("td", format(energy[k]), "chosen"));
    if (some && likely) cells.push(cell("td", probability ? format(probability[k]) : "", "chosen"));
    return cells.join("");
  });
  return [head.join(""), ...rows].map((row) => `<tr>${row}</tr>`).join("");
}

// The mean share of each branch of `|`; empty if there is none.
export function sharesBars(terms) {
  return terms.filter((row) => row.share).map((row) => {
    const share = mean(row.share);
    return `<div class="bar">${cell("span", plain(row.expression))}<span><i style="width:${100 * share}%"></i></span><span>${share.toFixed(3)}</span></div>`;
  }).join("");
}

export function statisticsTable(rows) {
  const head = ["", "mean", "sd", "ESS", "R-hat"].map((name) => cell("th", name)).join("");
  const line = (row) => cell("td", row.name) + ["mean", "sd", "ess_bulk", "r_hat"].map((name) => cell("td", row[name] ?? "–")).join("");
  return `<tr>${head}</tr>${rows.map((row) => `<tr>${line(row)}</tr>`).join("")}`;
}
