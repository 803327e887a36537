// Arranges the data of an explanation's tables once. If a table is absent, its part is empty.
const tokens = records("tokens").map((r, t) => ({ ...r, raw: about.texts[t] }));
const T = tokens.length;
const LAST = T - 1;
const CHANCE = about.chance_z;
const predictions = records("predictions");
const target = about.target;
/** The target; and over which token, where a difference of logits is meant. */
const aim = (versus) => [word(target), ...(versus === null ? [] : [" over ", word(versus)])];
const received = tokens.map((t) => (t.sink ?? "").includes("received")); // receives much of later tokens' attention
const sinks = tokens.map((t) => (t.sink ?? "") !== ""); // receives much attention, is the first token, or BOS

// ------------------------------------------------------------------------------------------- sums of the logit

const contributions = records("contributions");
const valued = (rows, kind) => rows.filter((r) => r.kind === kind).map((r) => r.contribution);
const summed = (rows, other, logit, sum) => ({ versus: other, logit, total: sum, tokens: valued(rows, "token"), constant: total(valued(rows, "constant")) });
const sums = [
  summed(contributions, about.versus, about.logit, about.totals[0]),
  ...[...grouped(records("versus"), "prediction").values()].map((own, i) => summed(own, own[0].versus, own[0].difference, about.totals[i + 1])),
];

const OWN = about.convention;
const conventions = new Map([[about.convention, sums[0].tokens], ...[...grouped(records("by_convention"), "convention")].map(([label, own]) => [label, own.map((r) => r.contribution)])]);
const others = [...conventions.keys()].filter((label) => label !== OWN);
const agreement = records("agreement");
const effects = tokens.some((t) => t.effect !== null) ? tokens.map((t) => t.effect) : null;

// ------------------------------------------------------------------------------------------- parts and heads

const PART = { residual: "residual stream", attn: "attention", mlp: "MLP", mixer: "mixer" };
const isHead = (part) => /^h\d+$/.test(part ?? "");
const partName = (part) => (isHead(part) ? `head ${part.slice(1)}` : (PART[part] ?? part));
const kindOf = (r) => (r.head === null ? (r.name.split(".")[2] ?? r.name) : `h${r.head}`);

const parts = new Map(); // by layer and part: what it adds, straight and along all paths
const beside = new Map(); // embeddings, and constants outside parts
for (const r of contributions)
  if (["layer", "head"].includes(r.kind) && !(r.kind === "head" && r.head === null)) parts.set(`${r.layer} ${kindOf(r)}`, { direct: r.contribution, all: r.all_paths });
  else if (["embed", "outside"].includes(r.kind)) beside.set(r.kind, (beside.get(r.kind) ?? 0) + r.contribution);
const kinds = ["attn", "mixer", "mlp"].filter((kind) => [...parts.keys()].some((key) => key.endsWith(` ${kind}`)));
const heads = [...new Set([...parts.keys()].map((key) => key.split(" ")[1]).filter(isHead))].sort((a, b) => a.slice(1) - b.slice(1));

const moved = new Map(); // by path, layer and part: what each token contributes through it; `null` is the constants
for (const r of records("flow")) {
  const key = `${r.path} ${r.layer} ${kindOf(r)}`;
  if (!moved.has(key)) moved.set(key, new Map());
  moved.get(key).set(r.position, r.contribution);
}
const patterns = new Map([...grouped(records("patterns"), "layer", "head")].map(([key, own]) => [key, new Map(own.map((r) => [r.position, r.attention]))]));

// ------------------------------------------------------------------------------------------- by depth

const lens = [...grouped(records("lens").filter((r) => r.part === "residual"), "layer").values()].map((own) => ({ layer: own[0].layer, at: own }));
const lensAt = new Map(lens.map((own) => [own.layer, own.at]));
const likely = grouped(records("lens_words").filter((r) => r.part === "residual"), "layer");
const terms = new Map([...grouped(records("lens_terms").filter((r) => r.part === "residual"), "layer")].map(([layer, own]) => [Number(layer), new Map(own.map((r) => [r.position, r.contribution]))]));
const chance = Object.fromEntries([...grouped(records("chance"), "side")].map(([side, own]) => [side, { samples: own[0].samples, mean: own.map((r) => r.mean), std: own.map((r) => r.std) }]));

const spectrum = (vectors, rank) => ({ S: vectors.map((v) => v.sigma), rank, groups: [...grouped(vectors, "block").values()].map((own) => [own[0].vector, own.at(-1).vector + 1]) });

/** The z of a score at a rank; null if all random directions have the same score, as with a vocabulary of one token. */
function zOf(side, score, rank) {
  const found = (score - chance[side]?.mean[rank]) / chance[side]?.std[rank];
  return Number.isFinite(found) ? found : null;
}
/** The top tokens, on one side, of each vector of a block whose singular value is not zero. */
function decoded(rows, S, most) {
  const found = S.filter((s) => s > 0).slice(0, most).map(() => []);
  for (const r of rows) found[r.vector]?.push({ word: r.word, score: r.score, z: zOf(r.side, r.score, found[r.vector].length) });
  return found;
}

const vectors = grouped(records("singular_values"), "position");
const sided = grouped(records("words"), "position", "side");
const blocks = tokens.map((r) => {
  const found = spectrum(vectors.get(String(r.position)) ?? [], r.stable_rank);
  const [writes, reads] = ["output", "input"].map((side) => decoded(sided.get(`${r.position} ${side}`) ?? [], found.S, Infinity));
  return { ...found, writes, reads };
});
const written = grouped(records("written"), "position"); // top tokens of what a token contributes

const depthWords = grouped(records("depth_words"), "layer", "part", "position", "sign");
const headWords = grouped(records("head_words"), "layer", "head", "sign");
for (const own of [...written.values(), ...depthWords.values(), ...headWords.values()]) own.forEach((w, rank) => (w.z = zOf("output", w.score, rank)));

function byDepth() {
  if (!tables.layers) return null;
  const rows = records("layers");
  const own = rows.filter((r) => r.position !== null);
  const all = grouped(records("layer_words"), "part", "span", "layer", "position", "side");
  const spectra = grouped(records("spectra"), "layer", "position");
  const of = (r, side) => all.get([r.part, r.span, r.layer, r.position, side].join(" ")) ?? [];
  const stream = own.filter((r) => r.part === "residual" && r.span === "cumulative");
  const found = new Map();
  for (const [layer, depth] of grouped(stream, "layer"))
    found.set(Number(layer), depth.map((r) => {
      const values = spectrum(spectra.get(`${r.layer} ${r.position}`) ?? [], r.stable_rank);
      const [writes, reads] = ["output", "input"].map((side) => decoded(of(r, side), values.S, about.layers.vectors).map((several) => several.slice(0, about.layers.top)));
      return { ...values, writes, reads };
    }));
  const maps = [...grouped(own, "part", "span").values()].map((view) => ({
    part: view[0].part,
    span: view[0].span,
    cells: new Map([...grouped(view, "layer")].map(([layer, line]) => [Number(layer), line.map((r) => of(r, "output").filter((w) => w.vector === 0).slice(0, 3).map((w) => w.word))])),
    blocks: new Map([...grouped(view, "layer")].map(([layer, line]) => [Number(layer), line.map((r) => ({ rank: r.stable_rank, sigma: r.sigma_0 }))])),
  }));
  maps.sort((a, b) => (a.span !== "cumulative") - (b.span !== "cumulative") || (a.part !== "residual") - (b.part !== "residual"));
  return { blocks: found, maps, ranks: rows.filter((r) => r.position === null), path: records("path"), reconstruction: Math.max(...rows.map((r) => r.reconstruction)) };
}
const depths = byDepth();
const mapName = (m) => `${PART[m.part] ?? m.part}, ${m.span === "cumulative" ? "from the embeddings" : "the layer alone"}`;

const LAYERS = [...new Set([...lens.map((own) => own.layer), ...(depths?.blocks.keys() ?? []), ...[...parts.keys()].map((key) => Number(key.split(" ")[0]))])].sort((a, b) => a - b);
const columnsShown = about.shown; // the tokens that have a row and a column of their own
