// A map of layers x parts: attention, MLP and every head; and what the selected one moves from which token.
let componentCells = [];
const componentColumns = [...kinds, ...heads];

if ($("components-table")) {
  switches($("paths"), "paths");
  walked($("components-table"), () => componentCells.map((own) => own.map((c) => c.node)), (r, c) => {
    const own = componentCells[r][c];
    if (own) go({ layer: own.layer, part: own.part });
  });
  told($("components-table"), (node) => {
    const [layer, part] = node.dataset.tip.split(" ");
    const own = parts.get(`${layer} ${part}`);
    return [make("strong", {}, `Layer ${layer}, ${partName(part)}`), make("div", {}, `straight ${signed(own.direct)}`), make("div", {}, `along all paths ${signed(own.all)}`), ...(headWords.get(`${layer} ${part.slice(1)} promoted`) ?? []).slice(0, 1).map((w) => make("div", {}, "writes ", word(w.word, false)))];
  });
}

function drawComponents() {
  const table = $("components-table");
  if (!table) return;
  const of = (key) => parts.get(key)?.[state.paths];
  const top = { part: largest([...parts].filter(([key]) => !isHead(key.split(" ")[1])).map(([, own]) => own[state.paths])) || 1, head: largest([...parts].filter(([key]) => isHead(key.split(" ")[1])).map(([, own]) => own[state.paths])) || 1 };
  const said = heads.length <= 12;
  const names = make("thead", {}, row(
    make("th", { scope: "col", class: "depth" }, "layer"),
    ...kinds.map((kind) => make("th", { scope: "col", class: "number part" }, PART[kind])),
    ...heads.map((part, i) => make("th", { scope: "col", class: `number head${i ? "" : " first"}` }, i ? part.slice(1) : "head 0")),
  ));
  const layers = LAYERS.filter((layer) => componentColumns.some((part) => parts.has(`${layer} ${part}`)));
  componentCells = [];
  const rows = layers.map((layer) => {
    const own = componentColumns.map((part, i) => {
      const key = `${layer} ${part}`;
      if (!parts.has(key)) return { node: make("td"), layer, part };
      const text = !isHead(part) || said ? compact(of(key)) : make("span", { class: "hidden" }, signed(of(key)));
      const node = make("td", { class: `cell number${i === kinds.length ? " first" : ""}`, "data-cell": "", "data-tip": key, tabindex: "-1" }, text);
      tinted(node, of(key), isHead(part) ? top.head : top.part);
      return { node, layer, part };
    });
    componentCells.push(own.filter((c) => c.node.dataset.cell !== undefined));
    return make("tr", {}, make("th", { scope: "row", class: "depth" }, String(layer)), ...own.map((c) => c.node));
  });
  fill(table, names, body(rows));
  const rest = [...beside].map(([kind, x]) => `${kind === "embed" ? "the embeddings" : "constants outside"} (${signed(x)})`);
  const straight = total([...parts].filter(([key]) => !isHead(key.split(" ")[1])).map(([, own]) => own.direct)) + total([...beside.values()]);
  const aimed = isolated(target) + (about.versus === null ? "" : ` over ${isolated(about.versus)}`);
  $("components-says").textContent = state.paths === "direct" ? `Straight to the logit of ${aimed}: attentions, MLPs${rest.length > 1 ? `, ${rest.slice(0, -1).join(", ")}` : ""}${rest.length ? ` and ${rest.at(-1)}` : ""} sum to ${fixed(straight, 4)}, the logit. Heads sum to their attention. Convention: ${about.under}.` : `Along all paths to the logit of ${aimed}, also through later parts. These overlap, and do not sum. Convention: ${about.under}.`;
  markComponents();
}
function markComponents() {
  let chosen = null;
  for (const own of componentCells)
    for (const { node, layer, part } of own) {
      const here = layer === state.layer && part === state.part;
      node.classList.toggle("chosen", here);
      if (here) chosen = node;
    }
  const all = componentCells.map((own) => own.map((c) => c.node));
  if (all.length) reached(all, chosen ?? all[0][0]);
}

/** What a part or a head moves from each token, and what a head attends to. */
function drawComponent() {
  const box = $("component");
  if (!box) return;
  const at = state.layer === null || state.part === "residual" ? strongest() : `${state.layer} ${state.part}`;
  const [layer, part] = at.split(" ");
  const own = parts.get(at);
  const usualOne = state.layer === null || state.part === "residual";
  const by = { direct: moved.get(`direct ${at}`), all: moved.get(`all ${at}`) };
  const pattern = isHead(part) ? patterns.get(`${layer} ${part.slice(1)}`) : null;
  const values = by[state.paths] ?? new Map();
  const there = columnsShown.filter((t) => values.has(t));
  const top = largest(there.map((t) => values.get(t))) || 1;
  const others = T - there.length;
  const sumOf = (map) => total(there.map((t) => map.get(t))) + (map.get(null) ?? 0);
  const lines = there.map((t) => {
    const bar = make("span", { class: `much ${values.get(t) < 0 ? "minus" : "plus"}`, "aria-hidden": "true" });
    bar.style.width = `${(100 * Math.abs(values.get(t))) / top}%`;
    return row(make("th", { scope: "row" }, ...(there.length < T ? [make("span", { class: "at" }, String(t))] : []), word(tokens[t].token)), cell(signed(by.direct?.get(t))), cell(signed(by.all?.get(t))), make("td", { class: "wide" }, bar), ...(pattern ? [cell(percent(pattern.get(t), 0))] : []));
  });
  const blank = () => [make("td"), ...(pattern ? [make("td")] : [])];
  if (others > 0 && by.direct) lines.push(row(make("th", { scope: "row" }, several(others, "other token")), cell(signed(own.direct - sumOf(by.direct))), cell(signed(own.all - sumOf(by.all))), ...blank()));
  if (by.direct && !missing(by.direct.get(null))) lines.push(row(make("th", { scope: "row" }, "constants"), cell(signed(by.direct.get(null))), cell(signed(by.all.get(null))), ...blank()));
  lines.push(row(make("th", { scope: "row" }, "sum"), cell(signed(own.direct)), cell(signed(own.all)), ...blank()));
  fill(box,
    make("h3", {}, `Layer ${layer}, ${partName(part)}`, usualOne ? make("span", { class: "muted" }, " the largest; choose another") : ""),
    make("table", {}, head(" from", "straight", "all paths", " ", ...(pattern ? ["attends"] : [])), body(lines)),
  );
}
function strongest() {
  const all = [...parts].filter(([key]) => !heads.length || isHead(key.split(" ")[1]));
  return all.reduce((best, own) => (Math.abs(own[1][state.paths]) > Math.abs(best[1][state.paths]) ? own : best))[0];
}
if ($("components-table")) drawings.push([["paths"], drawComponents], [["layer", "part"], markComponents], [["layer", "part", "paths"], drawComponent]);
