// Data, elements, routing. Text from the model reaches the page through text nodes only: nothing here or in the other
// files parses HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
// A column has an entry for each step: a number, null where it was not finite, undefined where nothing was logged.
for (const run of RUNS) {
  for (const [name, entries] of Object.entries(run.columns)) run.columns[name] = run.steps.map((_, i) => entries[i]);
}

// An element: element("td", {class: "x", onclick: f, "aria-sort": "none"}, "text", otherElement, ...).
function element(tag, properties = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(made.style, value);
    else if (["value", "checked", "selected", "disabled"].includes(name)) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

function clear(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const MISSING = "\u2013";

// A number for reading; details show it as it stands in the file.
function short(number, digits = 3) {
  if (number === null || number === undefined || Number.isNaN(number)) return MISSING;
  const size = Math.abs(number);
  if (size >= 10000) return Math.round(number).toLocaleString("en");
  if (size !== 0 && size < 0.001) return number.toExponential(1);
  return String(Number(number.toPrecision(size >= 1000 ? 4 : digits)));
}

function signed(number, digits = 3) {
  const text = short(number, digits);
  return number > 0 ? `+${text}` : text.replace("-", "\u2212");
}

function percent(share) {
  return share === null || share === undefined ? MISSING : `${(100 * share).toFixed(1)} %`;
}

const mean = (numbers) => numbers.reduce((sum, number) => sum + number, 0) / numbers.length;

function runChip(index) {
  return element("span", {class: "chip"}, element("i", {class: `run run-${index % 8}`}), RUNS[index].label);
}

function choice(label, options, selected, onchange) {
  const select = element(
    "select",
    {onchange: () => onchange(select.value)},
    options.map(([value, text]) => element("option", {value, selected: String(value) === String(selected)}, text)),
  );
  return element("label", {}, label, " ", select);
}

// The trees of a step lie in the page as they lie on the disk, gzip in base64, and are read when they are asked for.
const pages = new Map();

async function readTrees(run, step) {
  const id = `trees-${run}-${step}`;
  if (!pages.has(id)) {
    pages.set(id, (async () => {
      const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const [header, ...trees] = (await new Response(stream).text()).trimEnd().split("\n").map((line) => JSON.parse(line));
      return {settings: header.settings, trees};
    })());
    if (pages.size > 8) pages.delete(pages.keys().next().value);
  }
  return pages.get(id);
}

// Views are addressed by the fragment: #curves, #prompts, #tree/<run>/<step>/<number>/<node>.
const VIEWS = {};

function go(...parts) {
  location.hash = parts.join("/");
}

function route() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = Object.hasOwn(VIEWS, name) ? name : "curves";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  VIEWS[view].show(document.getElementById("view"), rest);
}
