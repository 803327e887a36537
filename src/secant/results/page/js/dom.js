// Elements, numbers and words. Texts of prompts and tokenizers become text nodes, never HTML.
const $ = (id) => root.getElementById(id);
const ground = root === document ? document.body : root; // elements in front of all others are appended here
const { signal } = host; // aborted when the view is replaced, which ends its listeners outside the view
const SVG = "http://www.w3.org/2000/svg";

function set(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) if (value !== null && value !== undefined) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const make = (tag, properties = {}, ...children) => set(document.createElement(tag), properties, children);
const drawn = (tag, properties = {}, ...children) => set(document.createElementNS(SVG, tag), properties, children);
const fill = (node, ...children) => node?.replaceChildren(...children);
const row = (...cells) => make("tr", {}, ...cells);
const body = (rows) => make("tbody", {}, ...rows);
const cell = (text, more = {}) => make("td", { class: "number", ...more }, text);

/** The header row of a table. A name that begins with a space marks a column of words. */
const head = (...names) =>
  make("thead", {}, row(...names.map((name, i) => (name.trim() ? make("th", { scope: "col", class: i && !name.startsWith(" ") ? "number" : null }, name.trim()) : make("td")))));

// ------------------------------------------------------------------------------------------- numbers

const missing = (x) => x === null || x === undefined || Number.isNaN(x);
const minus = (text) => (/^-0(\.0+)?$/.test(text) ? text.slice(1) : text.replaceAll("-", "−")); // without the sign if the number is shown as 0
const number = (x, digits = 4) => (missing(x) ? "–" : minus(Math.abs(x) >= 1e-4 || x === 0 ? String(Number(x.toPrecision(digits))) : x.toExponential(1)));
const fixed = (x, places = 2) => (missing(x) ? "–" : minus(x.toFixed(places)));
const short = (x) => (x === 0 || x >= 0.095 ? x.toFixed(x < 9.95 ? 2 : 1) : x >= 1e-4 ? String(Number(x.toPrecision(2))) : minus(x.toExponential(0)));
const signed = (x) => (missing(x) ? "–" : (x < 0 ? "−" : "+") + short(Math.abs(x)));
const compact = (x) => (missing(x) ? "–" : Math.abs(x) < 0.005 ? "0" : minus(x.toFixed(Math.abs(x) < 9.95 ? 2 : 1))); // for cells of large tables
const percent = (x, places) => (missing(x) ? "–" : minus((100 * x).toFixed(places ?? (x > 0 && x < 0.0095 ? 2 : 1))) + " %");
const share = (x, whole) => (whole ? percent(x / whole, 1) : "–");
const error = (x) => (missing(x) ? "–" : minus(x.toExponential(1)));
const bytes = (x) => (x >= 2 ** 30 ? (x / 2 ** 30).toFixed(1) + " GiB" : (x / 2 ** 20).toFixed(0) + " MiB");
const total = (values) => values.reduce((sum, x) => sum + x, 0);
const largest = (values) => values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
const several = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

// ------------------------------------------------------------------------------------------- words

/** A tokenizer's text with visible spaces, isolated so that its reading direction does not affect its surroundings. */
function word(text, found = true) {
  const node = make("bdi", { dir: "auto", "data-word": found ? text : null });
  if (/^·+$/.test(text)) node.append("␣".repeat(text.length));
  else if (text.startsWith("·")) node.append(make("span", { class: "space" }, "·"), text.slice(1));
  else node.append(text);
  return node;
}

/** A text inside a sentence, isolated in its reading direction. */
const isolated = (text) => `\u2068${text}\u2069`;

/** Words with a space between them. */
const words = (all) => all.flatMap((text, i) => (i ? [" ", word(text)] : [word(text)]));
const brief = (text, most = 28) => {
  const signs = [...text];
  return signs.length > most ? signs.slice(0, most - 1).join("") + "…" : text;
};

// ------------------------------------------------------------------------------------------- what pages share

/** Switches between light, dark, and the system's theme. */
function dressed(theme) {
  if (host.dressed) host.dressed(theme);
  if ($("theme")) $("theme").value = theme;
  for (const node of root.querySelectorAll("canvas")) node.dispatchEvent(new Event("dressed"));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dressed(state.theme), { signal });

/** The colours of the theme, for canvases. */
function colours(...names) {
  const probe = make("span");
  ground.append(probe);
  const found = names.map((name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  });
  probe.remove();
  return found;
}

/** Offers every table of the page as CSV, and all of it as JSON. */
function offered(list) {
  const quoted = (value) => (value === null ? "" : typeof value === "string" ? `"${value.replaceAll('"', '""')}"` : String(value));
  const csv = (name) => {
    const all = columns(name);
    return [all.map(([key]) => key), ...(all[0]?.[1] ?? []).map((_, i) => all.map(([, values]) => quoted(values[i])))].map((line) => line.join(",") + "\n").join("");
  };
  const json = () => JSON.stringify({ about, columns: described, tables: Object.fromEntries(Object.keys(tables).map((name) => [name, records(name)])) });
  const link = (name, text, type) => {
    const button = make("button", { type: "button", class: "link", "data-file": name }, name);
    button.addEventListener("click", () => {
      const url = URL.createObjectURL(new Blob([text()], { type }));
      const a = make("a", { href: url, download: name });
      a.click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    });
    return make("li", {}, button);
  };
  fill(list, link("secant.json", json, "application/json"), ...Object.keys(tables).map((name) => link(`${name}.csv`, () => csv(name), "text/csv")));
}

/** Closes menus when something else is clicked, or on Escape. */
function menus() {
  const close = (event) => {
    for (const menu of root.querySelectorAll("details.menu[open]")) if (event.key === "Escape" || (event.type === "click" && !event.composedPath().includes(menu))) menu.open = false;
  };
  document.addEventListener("click", close, { signal });
  document.addEventListener("keydown", close, { signal });
}

/** Copies the address of the current view to the clipboard. */
async function copied(button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(host.link());
  } catch {
    const field = make("input", { value: host.link(), "aria-label": "Link", readonly: "" });
    ground.append(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
  }
  const said = button.textContent;
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = said), 1500);
}
