// Draws the page of a summary: averages with their intervals, for each model and convention.
const NAMES = ["measures", "ranks", "spectra", "depths", "emergence", "shares", "overlaps", "conventions"];
const data = Object.fromEntries(NAMES.map((name) => [name, records(`summary_${name}`)]));
data.coverage = records("coverage");
data.failures = records("failures");
const tableOf = (name) => (NAMES.includes(name) ? `summary_${name}` : name);
const distinct = (values) => [...new Set(values)];
const subjects = distinct(data.coverage.map((r) => JSON.stringify([r.model, r.convention]))).map((text) => JSON.parse(text)).map(([model, convention]) => ({ model, convention }));
const models = distinct(subjects.map((s) => s.model));
const conventions = distinct(subjects.map((s) => s.convention));
const categories = distinct(data.coverage.map((r) => r.category)).filter((category) => category !== null);
const ALL = { category: "all", position: "all", part: "" };
const FEW = 20;

// ------------------------------------------------------------------------------------------- tables

/** Draws all columns of some rows of a table, except those in `without`, such as the chosen category; and what each
 *  column means. */
function table(id, of, rows, without = []) {
  const node = $(id);
  if (!node) return;
  const names = Object.keys(rows[0] ?? {}).filter((name) => !without.includes(name));
  const texts = new Set(names.filter((name) => rows.some((r) => typeof r[name] === "string") || name === "category"));
  const means = described[tableOf(of)] ?? {};
  const top = make("thead", {}, row(...names.map((name) => make("th", { scope: "col", class: texts.has(name) ? null : "number", title: means[name] }, name.replaceAll("_", " ")))));
  const one = (r, name) => {
    const more = { "data-of": name.replaceAll("_", " ") };
    if (r[name] === null) return make("td", { class: texts.has(name) ? null : "number", ...more }, ALL[name] ?? "–");
    return texts.has(name) ? make("td", more, make("bdi", { dir: "auto" }, brief(r[name], 200))) : cell(number(r[name]), more);
  };
  fill(node, top, body(rows.map((r) => row(...names.map((name) => one(r, name))))));
  const frame = node.closest(".scroll");
  const said = frame.nextElementSibling?.matches(".columns-mean") ? frame.nextElementSibling : make("details", { class: "columns-mean" }, make("summary", {}, "What the columns mean"), make("dl"));
  if (!said.parentNode) frame.after(said);
  fill(said.querySelector("dl"), ...names.filter((name) => means[name]).flatMap((name) => [make("dt", {}, name.replaceAll("_", " ")), make("dd", {}, means[name])]));
}

// ------------------------------------------------------------------------------------------- the selection

let state = { category: null, part: null, position: null, theme: "auto" };
const chosen = (rows) => rows.filter((r) => r.category === state.category);
const of = (rows, s) => rows.filter((r) => r.model === s.model && r.convention === s.convention);
const name = (s) => brief(models.length > 1 ? s.model : "") + (models.length > 1 && conventions.length > 1 ? ", " : "") + (conventions.length > 1 || models.length < 2 ? s.convention : "");
const part = () => state.part ?? [];

const COLOURS = ["c0", "c1", "c2", "c3", "c4", "c5"];
const STROKES = ["solid", "dash", "dot", "dashdot", "longdash", "longdot"];
const says = (r, key) => `${key}: ${number(r.mean)}${r.low === null ? "" : ` [${number(r.low)}, ${number(r.high)}]`}, n ${r.n}`;
const style = (i) => ({ colour: COLOURS[i % 6], marks: i % 6 });

/** A point with its interval for each key, side by side for each model and convention. */
function dots(rows, keys, key) {
  return subjects.map((s, i) => {
    const shift = subjects.length > 1 ? 0.5 * (i / (subjects.length - 1) - 0.5) : 0;
    const own = keys.map((k, at) => [k, at, of(rows, s).find((r) => key(r) === k[0])]).filter(([, , r]) => r);
    return { name: name(s), ...style(i), points: own.map(([k, at, r]) => ({ x: at + shift, y: r.mean, low: r.low, high: r.high, says: says(r, `${name(s)}, ${k[1]}`) })) };
  });
}
const among = (keys) => ({ keys: keys.map((k) => k[1]) });

/** A line and the band of its interval, for each model and convention. */
function curves(rows, x) {
  return subjects.map((s, i) => {
    const own = of(rows, s).sort((a, b) => a[x] - b[x]);
    return { name: name(s), ...style(i), line: STROKES[i % 6], points: own.map((r) => ({ x: r[x], y: r.mean, low: r.low, high: r.high, says: says(r, `${name(s)}, ${number(r[x], 3)}`) })) };
  });
}

const WORDS = [["writes_together", "U₀, all"], ["writes_last", "U₀, last"], ["writes_any", "U₀, any"], ["reads_own", "V₀, own"]];
const KINDS = [["token", "tokens"], ["constant", "constants"], ["embed", "embeddings"], ["layer", "layers"], ["layer attn", "attention"], ["layer mlp", "MLPs"], ["layer mixer", "mixers"], ["outside", "outside"]];
const share_ = (r) => (r.part ? `${r.kind} ${r.part}` : r.kind);
const here = (r) => r.part === part()[0] && r.span === part()[1];

const plots = {
  words: () => ({ x: among(WORDS), y: { label: "share", percent: true, range: [0, 1] }, series: dots(chosen(data.measures), WORDS, (r) => r.measure) }),
  ranks() {
    const [, common] = about.positions.find(([category]) => category === state.category);
    const rows = chosen(data.ranks).filter((r) => common.includes(r.position));
    const series = subjects.map((s, i) => ({
      name: name(s), ...style(i), box: true, of: subjects.length,
      points: of(rows, s).map((r) => ({ x: r.position + (subjects.length > 1 ? 0.45 * (i / (subjects.length - 1) - 0.5) : 0), y: r.median, q1: r.q25, q3: r.q75, low: r.q05, high: r.q95, says: `${name(s)}, position ${r.position}: median ${number(r.median)}, mean ${number(r.mean)}, n ${r.n}` })),
    })); // prettier-ignore
    return { x: { label: "position of the token", whole: true, range: [Math.min(...common) - 0.5, Math.max(...common) + 0.5] }, y: { label: "stable rank", log: true }, series };
  },
  spectra: () => ({ x: { label: "i", whole: true }, y: { label: "σᵢ/σ₀", range: [0, 1.05] }, series: curves(chosen(data.spectra).filter((r) => r.position === state.position), "vector") }),
  depths: () => ({ x: { label: "share of depth", range: [0, 1.03] }, y: { label: "stable rank", log: true }, series: curves(chosen(data.depths).filter(here), "depth") }),
  emergence: () => ({ x: { label: "share of depth", range: [0, 1.03] }, y: { label: "prediction seen", percent: true, range: [0, 1] }, series: curves(chosen(data.emergence).filter(here), "depth") }),
  shares() {
    const rows = chosen(data.shares);
    const told = (r) => r.n < 2 || r.low !== null || ![0, 1].includes(r.mean); // otherwise it is 0 or 1 for every prompt
    const there = KINDS.filter(([kind]) => rows.some((r) => share_(r) === kind && told(r)));
    return { x: among(there), y: { label: "share of the logit", percent: true, zero: true }, series: dots(rows, there, share_) };
  },
  overlaps() {
    const rows = chosen(data.overlaps);
    const keys = [["together output", "all, written"], ["last output", "last, written"], ["tokens output", "each, written"], ["last input", "last, read"], ["tokens input", "each, read"]];
    const key = (r) => `${r.of} ${r.side}`;
    const pair = (r) => JSON.stringify([r.model, r.convention, r.other, r.other_convention]);
    const pairs = distinct(rows.map(pair));
    const series = pairs.flatMap((p, i) => {
      const own = keys.map((k, at) => [k, at, rows.find((r) => pair(r) === p && key(r) === k[0])]).filter(([, , r]) => r);
      const [model, convention, other, otherConvention] = JSON.parse(p);
      const title = `${name({ model, convention })} – ${name({ model: other, convention: otherConvention })}`;
      const x = (at) => at + (pairs.length > 1 ? 0.6 * (i / (pairs.length - 1) - 0.5) : 0);
      return [
        { name: title, ...style(i), points: own.map(([k, at, r]) => ({ x: x(at), y: r.mean, low: r.low, high: r.high, says: says(r, `${title}, ${k[1]}`) })) },
        { colour: "faint", marks: 4, points: own.map(([, at, r]) => ({ x: x(at), y: r.chance, says: `chance: ${number(r.chance)}` })) },
      ];
    });
    return { x: among(keys), y: { label: "top tokens in common", percent: true, zero: true }, series };
  },
};

function warned() {
  const counts = chosen(data.coverage).map((r) => r.prompts - r.failed).filter((n) => n > 0);
  const least = Math.min(...counts);
  const node = $("few");
  node.hidden = !(least < FEW);
  node.textContent = node.hidden ? "" : `These are means of only ${least === Math.max(...counts) ? several(least, "prompt") : `${least} to ${several(Math.max(...counts), "prompt")}`}. A few more prompts may change these numbers: read the intervals, not the means.`;
}

function drawSummary() {
  dressed(state.theme);
  warned();
  table("coverage", "coverage", chosen(data.coverage));
  const shown = { spectra: (r) => r.position === state.position, depths: here, emergence: here };
  for (const each of NAMES) table(`numbers-${each}`, each, chosen(data[each]).filter(shown[each] ?? (() => true)), ["category"]);
  for (const [each, spec] of Object.entries(plots)) {
    const node = $(`plot-${each}`);
    if (node) charted(node, { ...spec(), says: `${node.parentNode.querySelector("figcaption").textContent} The numbers are below.` });
  }
}
function go(change) {
  state = { ...state, ...change };
  drawSummary();
}

table("failures", "failures", data.failures);
const options = (node, all) => fill(node, ...all.map(([value, text]) => make("option", { value }, text)));
if ($("category")) {
  options($("category"), [["all", "all"], ...categories.map((text, i) => [String(i), brief(text)])]);
  $("category").addEventListener("change", (event) => go({ category: event.target.value === "all" ? null : categories[Number(event.target.value)] }));
}
if ($("position")) {
  const places = distinct(data.spectra.map((r) => r.position)).sort((a, b) => (a ?? -1) - (b ?? -1));
  state.position = places[0];
  options($("position"), places.map((p) => [String(p), p === null ? "all tokens together" : `position ${p}`]));
  $("position").addEventListener("change", (event) => go({ position: event.target.value === "null" ? null : Number(event.target.value) }));
}
if ($("part")) {
  const kinds = distinct([...data.depths, ...data.emergence].map((r) => JSON.stringify([r.part, r.span])));
  const first = kinds.indexOf('["residual","cumulative"]');
  if (first > 0) kinds.unshift(...kinds.splice(first, 1));
  state.part = JSON.parse(kinds[0]);
  options($("part"), kinds.map((kind, i) => [String(i), JSON.parse(kind).join(", ")]));
  $("part").addEventListener("change", (event) => go({ part: JSON.parse(kinds[Number(event.target.value)]) }));
}
$("theme").addEventListener("change", (event) => go({ theme: event.target.value }));
offered($("files"));
menus();
drawSummary();
