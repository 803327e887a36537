// The panel, which stays in view and describes the selected token, layer and part.
const layerBox = $("layer");
const partBox = $("part");
if (!LAYERS.length) for (const node of [layerBox, partBox]) node.remove();
else {
  fill(layerBox, make("option", { value: "" }, "whole network"), ...LAYERS.map((layer) => make("option", { value: String(layer) }, `after layer ${layer}`)));
  layerBox.addEventListener("change", (event) => go({ layer: event.target.value === "" ? null : Number(event.target.value) }));
  partBox.addEventListener("change", (event) => go({ part: event.target.value }));
}
$("before").addEventListener("click", () => go({ token: state.token - 1 }));
$("after").addEventListener("click", () => go({ token: state.token + 1 }));
$("sheet").addEventListener("click", () => {
  const open = $("panel").classList.toggle("open");
  $("sheet").setAttribute("aria-expanded", String(open));
});

const fact = (name, ...value) => [make("dt", {}, name), make("dd", {}, ...value)];

/** Top tokens with their scores; those at chance are grey. */
function wordTable(caption, all) {
  if (!all.length) return make("p", { class: "muted" }, `${caption}: nothing can be decoded`);
  const rows = all.map((w) => {
    const line = row(make("td", {}, word(w.word)), cell(fixed(w.score)), cell(fixed(w.z, 1)));
    if (!missing(w.z) && w.z < CHANCE) line.className = "weak";
    return line;
  });
  return make("table", { class: "words" }, make("caption", {}, caption), head(" token", "cosine", "z"), body(rows));
}

function facts() {
  const t = state.token;
  const { layer, part } = state;
  if (layer === null) {
    const found = [fact("contributes", `${signed(sums[0].tokens[t])} of ${signed(sums[0].logit)}`, make("small", {}, `to the logit of `, ...aim(about.versus), `, under ${OWN}`))];
    if (others.length) found.push(fact("other conventions", others.map((label) => `${label} ${signed(conventions.get(label)[t])}`).join(", ")));
    if (effects) found.push(fact("deleted", effects[t] === null ? "–" : `the model's own logit loses ${signed(effects[t])}`));
    if (tokens[t].received !== null) found.push(fact("attention received", percent(tokens[t].received, 0), received[t] ? " – an attention sink" : ""));
    found.push(fact("‖J x‖", number(tokens[t].norm)), fact("stable rank", number(tokens[t].stable_rank)));
    return found;
  }
  if (part === "residual") {
    const found = [];
    const here = lensAt.get(layer)?.[t];
    if (terms.has(layer)) found.push(fact("contributes", `${signed(terms.get(layer).get(t))} of ${signed(lensAt.get(layer)[LAST].logit)}`, make("small", {}, "to the logit of ", word(target), ` read out here, under ${about.certificate.convention}`)));
    if (here) found.push(fact("logit lens at this token", word(here.top), ` ${percent(here.top_probability)}`, make("small", {}, word(target), ` ${percent(here.probability)}, rank ${here.rank}`)));
    const block = depths?.blocks.get(layer)?.[t];
    if (block) found.push(fact("σ₀", number(block.S[0])), fact("stable rank", number(block.rank)));
    return found;
  }
  const key = `${layer} ${part}`;
  const own = parts.get(key);
  const found = [];
  const straight = moved.get(`direct ${key}`)?.get(t);
  if (straight !== undefined) found.push(fact("moves from this token", `${signed(straight)} straight, ${signed(moved.get(`all ${key}`)?.get(t))} along all paths`, make("small", {}, "to the logit of ", word(target), `, under ${about.under}`)));
  found.push(fact("from all tokens", `${signed(own.direct)} straight, ${signed(own.all)} along all paths`));
  if (isHead(part)) {
    const pattern = patterns.get(`${layer} ${part.slice(1)}`);
    if (pattern?.has(t)) found.push(fact("attends to it", percent(pattern.get(t), 0), make("small", {}, "from the last position")));
  } else
    for (const m of depths?.maps.filter((own) => own.part === part) ?? []) {
      const block = m.blocks.get(layer)?.[t];
      if (block) found.push(fact(m.span === "cumulative" ? "from the embeddings" : "by itself", `σ₀ ${number(block.sigma)}, stable rank ${number(block.rank)}`));
    }
  return found;
}

function panelWords() {
  const { token: t, layer, part } = state;
  if (isHead(part)) {
    const own = ["promoted", "suppressed"].map((sign) => headWords.get(`${layer} ${part.slice(1)} ${sign}`));
    return own.every((found) => found?.length) ? [make("h3", {}, "What the head writes, from all tokens"), make("div", { class: "sides" }, wordTable("promoted", own[0]), wordTable("suppressed", own[1]))] : [];
  }
  const [up, down] = ["promoted", "suppressed"].map((sign) => depthWords.get(`${layer ?? LAYERS.at(-1)} ${part} ${t} ${sign}`));
  const own = layer === null ? (written.get(String(t)) ?? up) : up;
  if (own?.length) return [make("h3", {}, "What it writes (J x)"), make("div", { class: "sides" }, wordTable("promoted", own), ...(down ? [wordTable("suppressed", down)] : []))];
  if (layer === null) return [];
  return tables.depth_words && !columnsShown.includes(t) ? [make("p", { class: "muted" }, "What it writes here was decoded only for tokens that have a row above.")] : [];
}

function panelVectors() {
  const { token: t, layer, part } = state;
  if (part !== "residual") {
    const own = (depths?.maps ?? []).filter((m) => m.part === part).map((m) => [m, m.cells.get(layer)?.[t] ?? []]).filter(([, all]) => all.length);
    return own.map(([m, all]) => make("p", {}, `U₀, ${m.span === "cumulative" ? "from the embeddings" : "the layer alone"}: `, ...words(all)));
  }
  const block = layer === null ? blocks[t] : depths?.blocks.get(layer)?.[t];
  if (!block) return [];
  if (!block.writes.length) return [make("p", {}, "This block is zero: it has no directions.")];
  const group = (i) => block.groups.find(([lo, hi]) => lo <= i && i < hi) ?? [i, i + 1];
  const found = block.writes.map((writes, i) => {
    const [lo, hi] = group(i);
    const near = hi - lo > 1 ? ` ≈ vectors ${lo} to ${hi - 1} have near-equal σ: one alone means nothing` : "";
    return make("div", { class: "vector" }, make("h4", {}, `Vector ${i}, σ${SUB(i)} ${number(block.S[i])}`, make("span", { class: "muted" }, near)), make("div", { class: "sides" }, wordTable("writes (U)", writes), wordTable("reads (V)", block.reads[i] ?? [])));
  });
  if (layer !== null && about.layers.vectors < block.S.length) found.push(make("p", { class: "muted" }, `At each depth the page has ${about.layers.vectors} of ${block.S.length} vectors, ${several(about.layers.top, "top token")} each; the tables have all.`));
  if (chance.output && chance.input) {
    const said = ({ mean, std }) => `${fixed(mean[0])} ± ${fixed(std[0])}`;
    found.push(make("p", { class: "muted" }, `The top token of a random direction has a cosine of ${said(chance.output)} (writes) and ${said(chance.input)} (reads), of ${chance.output.samples} drawn. z: standard deviations above the same rank in these; grey below ${CHANCE}.`));
  }
  return found;
}
const SUB = (i) => [...String(i)].map((d) => "₀₁₂₃₄₅₆₇₈₉"[d]).join("");

function drawPanel() {
  const { token: t, layer, part } = state;
  const where = layer === null ? "" : part === "residual" ? ` after layer ${layer}` : ` in layer ${layer}, ${partName(part)}`;
  fill($("chosen"), word(tokens[t].token), make("span", { class: "muted" }, where));
  fill($("peek"), word(tokens[t].token), make("span", {}, where));
  $("at").textContent = `token ${t} of ${T}`;
  $("before").disabled = t === 0;
  $("after").disabled = t === LAST;
  if (LAYERS.length) {
    layerBox.value = layer === null ? "" : String(layer);
    const there = layer === null ? ["residual"] : ["residual", ...componentColumns.filter((own) => parts.has(`${layer} ${own}`))];
    fill(partBox, ...there.map((own) => make("option", { value: own }, partName(own))));
    partBox.value = part;
    partBox.disabled = layer === null;
  }
  fill($("facts"), ...facts().flat());
  fill($("panel-words"), ...panelWords());
  const found = panelVectors();
  $("vectors").hidden = !found.length;
  fill($("vector-words"), ...found);
}
drawings.push([["token", "layer", "part"], drawPanel]);
