"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 25;
const number = new Intl.NumberFormat("en").format;

// Values go into the page as text, never as markup.
function make(name, attributes = {}, ...children) {
  const svg = ["svg", "rect", "line", "text", "title"].includes(name);
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function bars(figure) {
  const width = 400, height = 130, foot = 18;
  const most = Math.max(...figure.bars.map((bar) => bar[1]), 1);
  const step = width / figure.bars.length;
  const svg = make("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${figure.title}: ${figure.text}`,
  });
  figure.bars.forEach(([name, count], index) => {
    const tall = count ? Math.max(1, (count / most) * (height - foot - 14)) : 0;
    const bar = make("rect", {
      x: index * step + step * 0.05, y: height - foot - tall,
      width: Math.min(step * 0.9, 60), height: tall,
    });
    bar.append(make("title", {}, `${name}: ${number(count)}${figure.unit || " rows"}`));
    svg.append(bar);
  });
  const base = height - foot;
  svg.append(make("line", { x1: 0, x2: width, y1: base, y2: base }));
  svg.append(make("text", { x: 0, y: height - 4 }, figure.bars[0][0]));
  if (figure.bars.length > 1) {
    const last = figure.bars[figure.bars.length - 1][0];
    svg.append(make("text", { x: width, y: height - 4, "text-anchor": "end" }, last));
  }
  svg.append(make("text", { x: 0, y: 10 }, number(most) + (figure.unit || " rows")));
  return make("figure", { class: "panel" }, make("figcaption", {}, figure.title), svg,
    make("p", { class: "soft" }, figure.text));
}

function meter(share) {
  const svg = make("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    make("rect", { x: 0, y: 0, width: 100 * share, height: 10 }));
  return make("div", { class: "meter" }, svg);
}

// Cells that are numbers stand to the right; {share} is a bar.
function table(item) {
  const head = item.head && make("tr", {}, ...item.head.map((name, place) =>
    make("th", { scope: "col", class: typeof item.rows[0]?.[place] === "number" ? "number" : null }, name)));
  const body = item.rows.map((row) => make("tr", {}, ...row.map((cell, place) => {
    if (cell !== null && typeof cell === "object") return make("td", {}, meter(cell.share));
    if (typeof cell === "number") return make("td", { class: "number" }, number(cell));
    return place ? make("td", {}, cell ?? "") : make("th", { scope: "row" }, cell ?? "");
  })));
  const grid = make("div", { class: "scroll" }, make("table", {},
    head ? make("thead", {}, head) : null, make("tbody", {}, ...body)));
  const wide = item.wide ? " wide" : "";
  if (item.folded) {
    return make("details", { class: "panel" + wide }, make("summary", {}, item.title), grid);
  }
  return make("div", { class: "panel" + wide }, make("h3", {}, item.title), grid);
}

const filters = document.getElementById("filters");
filters.addEventListener("submit", (event) => event.preventDefault());

function field(label, control, kind = null) {
  control.addEventListener(control.tagName === "SELECT" ? "change" : "input", refresh);
  filters.append(make("label", { class: kind }, label, control));
  return control;
}

function choices(label, values, all = "all") {
  const options = [make("option", { value: "" }, all)];
  values.forEach((value, place) => options.push(make("option", { value: String(place + 1) }, value)));
  const control = field(label, make("select", {}, ...options));
  return { chosen: () => (control.value ? values[control.value - 1] : null), control };
}

function distinct(read) {
  return [...new Set(data.rows.flatMap((row) => row.answers.map(read)).filter(Boolean))].sort();
}

const textOf = (row) => [row.id, row.prompt, ...row.answers.flatMap((a) => [a.text, a.message]),
  ...row.extra.map((pair) => pair[1])].filter(Boolean).join("\n").toLowerCase();
const haystacks = data.rows.map(textOf);
const search = field("Search", make("input", { type: "search", placeholder: "in prompts, answers, columns" }), "search");
const status = choices("Status", distinct((a) => a.status));
const errors = choices("Error", distinct((a) => a.code));
const reasons = choices("Finish reason", distinct((a) => a.finish));
const least = field("Characters, from", make("input", { type: "number", min: "0", inputmode: "numeric" }));
const most = field("to", make("input", { type: "number", min: "0", inputmode: "numeric" }));
const column = data.columns.length ? choices("Column", data.columns, "any") : null;
const value = column && field("contains", make("input", { type: "search" }));
const orders = {
  "longest answer first": (row) => -Math.max(...row.answers.map((a) => a.chars ?? 0)),
  "shortest answer first": (row) => Math.min(...row.answers.map((a) => a.chars ?? 0)),
  "most generated tokens first": (row) => -Math.max(...row.answers.map((a) => a.generated ?? 0)),
};
const order = choices("Order", Object.keys(orders), "as in the manifest");

function matches(row, place) {
  const words = search.value.toLowerCase().trim();
  if (words && !haystacks[place].includes(words)) return false;
  const wanted = [["status", status], ["code", errors], ["finish", reasons]];
  for (const [name, control] of wanted) {
    const chosen = control.chosen();
    if (chosen !== null && !row.answers.some((a) => a[name] === chosen)) return false;
  }
  const long = (test) => row.answers.some((a) => a.chars !== null && test(a.chars));
  if (least.value && !long((chars) => chars >= Number(least.value))) return false;
  if (most.value && !long((chars) => chars <= Number(most.value))) return false;
  if (column && value.value) {
    const name = column.chosen(), part = value.value.toLowerCase();
    if (!row.extra.some(([key, text]) => (name === null || key === name) && text.toLowerCase().includes(part))) {
      return false;
    }
  }
  return true;
}

// What two answers do not share at their beginning and end.
function marked(text, other) {
  if (!other || text === other) return [text];
  const short = Math.min(text.length, other.length);
  let start = 0, end = 0;
  while (start < short && text[start] === other[start]) start++;
  while (end < short - start && text[text.length - 1 - end] === other[other.length - 1 - end]) end++;
  const stop = text.length - end;
  return [text.slice(0, start), make("mark", {}, text.slice(start, stop)), text.slice(stop)];
}

function answer(item, name, other) {
  const block = make("div", {}, make("p", { class: "label" }, name));
  if (item.status === "error") {
    block.append(make("pre", { class: "error" }, `${item.code}: ${item.message ?? ""}`));
  } else if (item.text === null) {
    block.append(make("p", { class: "soft" }, "not in this output"));
  } else {
    const empty = item.text === "" ? [make("span", { class: "soft" }, "(an empty answer)")] : marked(item.text, other);
    block.append(make("pre", { dir: "auto" }, ...empty));
    if (item.cut) block.append(make("p", { class: "soft" }, `the first of ${number(item.chars)} characters`));
  }
  const tokens = [];
  if (item.prompt !== null) tokens.push(`${number(item.prompt)} prompt tokens`);
  if (item.image) tokens.push(`${number(item.image)} of them image`);
  if (item.generated !== null) tokens.push(`${number(item.generated)} generated`);
  if (tokens.length) block.append(make("p", { class: "label" }, tokens.join(", ")));
  return block;
}

function card(row) {
  const head = make("header", {}, make("h3", {}, `Row ${number(row.row)}`), make("span", { class: "soft" }, `id ${row.id}`));
  row.answers.forEach((item) => {
    const bad = item.status === "error";
    const text = bad ? item.code : item.finish;
    if (text) head.append(make("span", { class: bad ? "badge bad" : "badge" }, text));
  });
  const pictures = make("div", { class: "pictures" });
  row.images.forEach((image, place) => pictures.append(image.startsWith("data:image/jpeg;base64,")
    ? make("img", { src: image, alt: `Image ${place + 1} of row ${row.row}`, loading: "lazy" })
    : make("p", {}, image)));
  const words = make("div", {});
  if (row.prompt !== null) {
    words.append(make("p", { class: "label" }, "Prompt"), make("pre", { dir: "auto" }, row.prompt));
  }
  const sides = data.outputs.map((output) => output.name);
  words.append(make("div", { class: "answers" }, ...row.answers.map((item, side) =>
    answer(item, sides.length > 1 ? sides[side] : "Answer", sides.length > 1 ? row.answers[1 - side].text : null))));
  if (row.extra.length) {
    words.append(make("dl", {}, ...row.extra.flatMap(([key, text]) => [make("dt", {}, key), make("dd", {}, text)])));
  }
  const body = row.images.length
    ? make("div", { class: "body pictured" }, pictures, words)
    : make("div", { class: "body" }, words);
  return make("article", { class: "row" }, head, body);
}

let found = [], shown = 0;
const cards = document.getElementById("cards"), button = document.getElementById("more");

function more() {
  const next = found.slice(shown, shown + PER_PAGE);
  cards.append(...next.map(card));
  shown += next.length;
  button.hidden = shown >= found.length;
}

function refresh() {
  found = data.rows.filter(matches);
  const key = orders[order.chosen()];
  if (key) found.sort((a, b) => key(a) - key(b));
  cards.replaceChildren();
  shown = 0;
  more();
  document.getElementById("count").textContent =
    `${number(found.length)} of the ${number(data.rows.length)} rows on this page match`;
}

document.getElementById("lead").textContent = data.lead;
document.getElementById("notes").append(...data.notes.map((note) => make("li", {}, note)));
document.getElementById("summary").append(...data.figures.map(bars), ...data.tables.map(table));
button.addEventListener("click", more);
refresh();
