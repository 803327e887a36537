// A map of layers x tokens: what each token contributes at each depth, what it writes there, and the logit lens.
let lensCells = []; // rows of cells; the first cell of each row is the layer's own
let lensColumns = [];

const LENS_NAMES = { terms: "contribution", written: "writes (J x)", direction: "direction (U₀)", lens: "logit lens" };

if ($("lens-table")) {
  fill($("cells"), ...CELLS.map((name) => make("button", { type: "button", class: "switch", "data-value": name }, LENS_NAMES[name])));
  const tintOf = { terms: "terms", written: "terms", direction: "terms", lens: "top" };
  switches($("cells"), "cells", (value) => ({ cells: value, ...(lens.length ? { tint: tintOf[value] } : {}) }));
  if (TINTS.length) {
    fill($("tint"), make("option", { value: "terms" }, "contribution"), make("option", { value: "target" }, `probability of ${isolated(target)}`), make("option", { value: "top" }, "probability of the top token"));
    $("tint").addEventListener("change", (event) => go({ tint: event.target.value }));
  } else $("tint").closest(".control").remove();
  if (depths) {
    fill($("map"), ...depths.maps.map((m, i) => make("option", { value: String(i) }, mapName(m))));
    $("map").addEventListener("change", (event) => go({ map: Number(event.target.value), cells: "direction" }));
  } else $("map").closest(".control").remove();

  const table = $("lens-table");
  walked(table, () => lensCells, (r, c) => {
    const layer = LAYERS[r];
    if (c === 0) go({ layer, part: "residual" });
    else {
      const part = state.cells === "direction" ? depths.maps[state.map].part : "residual";
      go({ token: lensColumns[c - 1], layer, part: parts.has(`${layer} ${part}`) ? part : "residual" });
    }
  });
  told(table, (node) => {
    const [r, c] = node.dataset.tip.split(" ").map(Number);
    const layer = LAYERS[r];
    if (c < 0) {
      const own = likely.get(String(layer)) ?? [];
      return own.length ? [make("strong", {}, `After layer ${layer} the model would say`), make("ol", {}, ...own.slice(0, 8).map((w) => make("li", {}, word(w.word, false), ` ${percent(w.probability)}`)))] : null;
    }
    const here = lensAt.get(layer)?.[c];
    const found = [make("strong", {}, word(tokens[c].token, false), ` after layer ${layer}`)];
    if (terms.has(layer)) found.push(make("div", {}, `contributes ${signed(terms.get(layer).get(c))} of ${signed(lensAt.get(layer)[LAST].logit)}`));
    const own = depthWords.get(`${layer} residual ${c} promoted`);
    if (own) found.push(make("div", {}, "has written ", ...words(own.slice(0, 8).map((w) => w.word))));
    const direction = state.cells === "direction" ? depths?.maps[state.map].cells.get(layer)?.[c] : null;
    if (direction?.length) found.push(make("div", {}, "direction ", ...words(direction)));
    if (here) found.push(make("div", {}, "logit lens at this token ", word(here.top, false), ` ${percent(here.top_probability)}; `, word(target, false), ` ${percent(here.probability)}, rank ${here.rank}`));
    return found;
  });
}

/** How strongly a cell is coloured, and whether its value raises or lowers the logit. */
function lensTint(layer, t, top) {
  if (state.tint === "terms") return [terms.get(layer)?.get(t) ?? null, top];
  const here = lensAt.get(layer)?.[t];
  const p = here ? (state.tint === "target" ? here.probability : here.top_probability) : null;
  return [p === null ? null : Math.sqrt(p), 1];
}
function lensText(layer, t) {
  if (state.cells === "terms") return compact(terms.get(layer)?.get(t));
  if (state.cells === "lens") return word(lensAt.get(layer)?.[t]?.top ?? "–");
  const own = state.cells === "written" ? (depthWords.get(`${layer} residual ${t} promoted`) ?? []).map((w) => w.word) : (depths.maps[state.map].cells.get(layer)?.[t] ?? []);
  if (!own.length) return "–";
  const node = word(own[0]);
  node.dataset.word = own.slice(0, 3).join("\n");
  return node;
}

function drawLens() {
  const table = $("lens-table");
  if (!table) return;
  lensColumns = columnsShown;
  const plain = sinks.some((s) => !s) ? (t) => !sinks[t] : () => true;
  const constant = lens.length && state.cells === "terms" && [...terms.values()].some((own) => own.get(null));
  const names = make("thead", {}, row(
    make("th", { scope: "col", class: "depth" }, "layer"),
    ...(lens.length ? [make("th", { scope: "col", class: "top" }, "top", make("span", { class: "wide-only" }, " token")), make("th", { scope: "col", class: "number p" }, "p ", make("span", { class: "wide-only" }, word(target, false))), make("th", { scope: "col", class: "number rank" }, "rank")] : []),
    ...lensColumns.map((t) => make("th", { scope: "col", class: "of" }, ...(lensColumns.length < T ? [`${t} `] : []), word(tokens[t].token))),
    ...(constant ? [make("th", { scope: "col", class: "number" }, "constants")] : []),
  ));
  lensCells = [];
  const rows = LAYERS.map((layer, r) => {
    const at = lensAt.get(layer)?.[LAST];
    const first = make("th", { scope: "row", class: "depth", "data-cell": "", "data-tip": `${r} -1`, tabindex: "-1" }, String(layer));
    const top = largest([...(terms.get(layer) ?? [])].filter(([t]) => t !== null && plain(t)).map(([, x]) => x)) || 1;
    const cells = lensColumns.map((t) => {
      const node = make("td", { class: state.cells === "terms" ? "cell number" : "cell", "data-cell": "", "data-tip": `${r} ${t}`, tabindex: "-1" }, lensText(layer, t));
      const [value, whole] = lensTint(layer, t, top);
      tinted(node, value, whole);
      if (state.tint !== "terms") node.classList.add("likely");
      return node;
    });
    lensCells.push([first, ...cells]);
    const own = at ? [make("td", { class: `top${at.rank === 0 ? " strong" : ""}`, "data-tip": `${r} -1` }, word(at.top)), cell(percent(at.probability), { class: "number p" }), cell(String(at.rank), { class: "number rank" })] : lens.length ? [make("td"), make("td"), make("td")] : [];
    return make("tr", {}, first, ...own, ...cells, ...(constant ? [cell(signed(terms.get(layer)?.get(null)))] : []));
  });
  fill(table, names, body(rows));
  if ($("map")) {
    $("map").value = String(state.map);
    $("map").closest(".control").hidden = state.cells !== "direction";
  }
  if (TINTS.length) $("tint").value = state.tint;
  const text = {
    terms: `Each cell: what the token contributes to the logit of ${isolated(target)} that is read out there; a row sums to that logit. Convention: ${about.certificate.convention}.`,
    written: `Each cell: the top token of what the token contributes to the residual stream after the layer (J x), read through the final norm. Convention: ${about.certificate.convention}.`,
    direction: `Each cell: the top token of the first left singular vector (U₀) of the token's block: ${depths ? mapName(depths.maps[state.map]) : ""}.`,
    lens: "Each cell: the top token of the residual stream at that token, read out by the final norm and the head.",
  }[state.cells];
  const tint = { terms: "Colour: contribution, relative to the row's largest, leaving out the first token and sinks.", target: `Colour: probability of ${isolated(target)} at that token.`, top: "Colour: probability of the top token." }[state.tint];
  $("lens-says").textContent = `${text} ${lens.length ? tint : ""}`;
  markLens();
}
function markLens() {
  const r = LAYERS.indexOf(state.layer);
  const c = lensColumns.indexOf(state.token);
  for (const [i, own] of lensCells.entries()) {
    own[0].parentNode.classList.toggle("current", i === r);
    for (const [j, node] of own.entries()) node.classList.toggle("chosen", i === r && j === c + 1 && c >= 0);
  }
  const at = lensCells[r < 0 ? lensCells.length - 1 : r]?.[c + 1];
  if (at) reached(lensCells, at);
}
if ($("lens-table")) drawings.push([["cells", "tint", "map"], drawLens], [["token", "layer"], markLens]);
