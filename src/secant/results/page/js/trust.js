// The certificate and agreement, the geometry of the blocks, the continuation, and how the page was computed.

function drawCertificate() {
  const c = about.certificate;
  const lines = [
    ["forward pass", c.forward_equal ? "equal, bit for bit" : "not equal", "The recorded logits against those of the plain model."],
    ["reconstruction", error(c.reconstruction), `‖J x + b − y‖ / ‖y‖: how far the system is from the model's own y. Refused above ${error(c.tolerance)}.`],
    ["affinity", error(c.affinity), `How far the frozen network is from affine, at a random input. Refused above ${error(c.affinity_tolerance)}.`],
    ["constants", percent(c.constants, 1), "‖b‖ / ‖y‖: what the model's own constants add, such as biases."],
  ];
  if (c.convention !== OWN) lines.push(["convention", c.convention, `That of the spectra, the top tokens and the lens. Contributions are under ${OWN}, and their sum certifies them.`]);
  if (c.stock !== null) lines.push(["stock casts", error(c.stock), "How much the stock model's casts to float32 change its float64 logits."]);
  fill($("certificate"), ...lines.flatMap(([name, value, says]) => fact(name, value, make("small", {}, says))));
}

function drawConventions() {
  if (!$("agreement")) return;
  if (!agreement.length) {
    $("agreement-says").textContent = "Not computed yet.";
    return;
  }
  const tested = agreement.some((r) => !missing(r.deletion));
  const names = head(" convention", "same signs", "ranks", "largest gap", ...(tested ? ["deletion", "no first"] : []));
  fill($("agreement"), names, body(agreement.map((r) => row(make("th", { scope: "row" }, r.convention, r.convention === OWN ? make("span", { class: "flag" }, "shown") : ""), cell(percent(r.signs, 0)), cell(fixed(r.ranks)), cell(short(r.largest)), ...(tested ? [cell(fixed(r.deletion)), cell(fixed(r.deletion_rest))] : [])))));
  $("agreement-says").textContent = `Contributions under every convention sum to the logit exactly, yet they differ. Same signs, ranks and largest gap compare them with the contributions under ${OWN}: by the share of tokens, Spearman's correlation, and the largest difference in logits.${tested ? " Deletion: Spearman's correlation of a convention's contributions with how much the model's own logit drops when each token is deleted, which does not depend on a convention; 1 is best, and random orders have 0 on average. No first: the same without the first token." : " The prompt is too long to delete every token in turn."}`;
}

function drawFaithfulness() {
  const rows = records("faithfulness");
  if (!rows.length || !$("faithfulness")) return;
  const by = [...grouped(rows, "method").values()].map((own) => own.find((r) => r.value === "logit") ?? own[0]);
  const order = [OWN, ...others];
  by.sort((a, b) => (order.indexOf(a.method) + 99) % 99 - (order.indexOf(b.method) + 99) % 99);
  fill($("faithfulness"), head(" ranked by", "best removed", "only best kept", "correlation"), body(by.map((r) => row(make("th", { scope: "row" }, r.method), cell(signed(r.comprehensiveness)), cell(signed(r.sufficiency)), cell(fixed(r.correlation))))));
}

function drawTangent() {
  const rows = records("rebuilt");
  const norm = (values) => Math.sqrt(total(values.map((x) => x * x)));
  const whole = norm(rows.map((r) => r.output));
  if (!rows.length || !whole) return;
  const off = norm(rows.map((r) => r.ordinary - r.output)) / whole;
  const some = rows.length < about.shape[0] ? `${rows.length} of ${about.shape[0]}` : `all ${about.shape[0]}`;
  $("tangent").textContent = `The ordinary Jacobian J′, the tangent at the prompt, does not reproduce y: ‖J′ x − y‖ is ${percent(off, 0)} of ‖y‖ (over ${some} elements of y), where ‖J x + b − y‖ is ${error(about.certificate.reconstruction)} of it. This leaves out the tangent's intercept y − J′ x. With it, every tangent is exact at its own point, but says nothing about what y consists of.`;
}

// ------------------------------------------------------------------------------------------- geometry

const COLOURS = ["c0", "c1", "c2", "c3", "c4", "c5"];
const STROKES = ["solid", "dash", "dot", "dashdot", "longdash", "longdot"];

function drawSpectrum() {
  const of = (t) => (state.layer === null ? blocks[t] : depths?.blocks.get(state.layer)?.[t]);
  const points = (t) => (of(t)?.S ?? []).map((y, x) => ({ x, y, says: `${tokens[t].token} σ${SUB(x)} ${number(y)}` }));
  const back = T > 64 ? [] : tokens.map((_, t) => t).filter((t) => t !== state.token && columnsShown.includes(t));
  charted($("plot-spectrum"), {
    x: { label: "vector", whole: true }, y: { label: "σ", log: true },
    series: [...back.map((t) => ({ points: points(t), line: "solid", colour: "faint", thin: true })), { points: points(state.token), line: "solid", marks: 0, colour: "c0" }],
    says: `Singular values of the block of token ${state.token}: ${(of(state.token)?.S ?? []).map((s) => number(s)).join(", ")}`,
  }); // prettier-ignore
}
function drawRanks() {
  if (!depths) return;
  const series = depths.maps.map((m, i) => ({
    name: mapName(m), line: STROKES[i % 6], marks: i, colour: COLOURS[i % 6],
    points: depths.ranks.filter((r) => r.part === m.part && r.span === m.span).map((r) => ({ x: r.layer, y: r.stable_rank, says: `${mapName(m)}, layer ${r.layer}: ${number(r.stable_rank)}` })),
  })); // prettier-ignore
  series.push({ name: "selected token", line: "dot", colour: "own", points: [...depths.blocks].map(([layer, all]) => ({ x: layer, y: all[state.token].rank })) });
  charted($("plot-ranks"), { x: { label: "layer", whole: true }, y: { label: "stable rank", log: true }, series, rule: state.layer, says: "Stable rank by layer; the numbers are below." });
}
function drawPath() {
  if (!$("plot-path")) return;
  const every = Math.max(1, Math.ceil(LAYERS.length / 6));
  const series = [0, 1].map((v) => ({
    name: `vector ${v}`, line: STROKES[v], marks: v, names: true, colour: COLOURS[v],
    points: depths.path.filter((p) => p.vector === v).map((p) => ({ x: p.x, y: p.y, name: p.layer % every === 0 || p.layer === LAYERS.at(-1) ? String(p.layer) : undefined, says: `vector ${v} after layer ${p.layer}` })),
  })); // prettier-ignore
  charted($("plot-path"), { x: { label: "along the last u₀", range: [-1.15, 1.15] }, y: { label: "along the last u₁", range: [-1.15, 1.15] }, series, says: "Path of the top two left singular vectors through the layers." });
}

const sizes = tables.image ? records("image").map((r) => r.size) : [];
function drawImage() {
  const [d, , width] = about.shape;
  $("image-says").textContent = `J, ${d} x ${several(T, "token")} x ${width}: ${about.rectangles ? `root mean square of each rectangle of ${about.rectangles[0]} x ${about.rectangles[2]} a token, two decades of it; the frame is the chosen token's block.` : "its image was left out of this page, since it requires every row of J."}`;
  if (!about.rectangles || !$("image")) return;
  const [R, , C] = about.rectangles;
  const rows = Array.from({ length: R }, (_, r) => sizes.slice(r * T * C, (r + 1) * T * C));
  const top = sizes.reduce((m, x) => Math.max(m, x), 0);
  const shade = (x) => (x > 0 ? Math.max(0, 1 + Math.log10(x / top) / 2) : 0);
  pictured($("image"), rows, shade, [state.token * C, (state.token + 1) * C]);
}

/** Columns of J decode to what one element of an embedding writes, rows to what one element of y is selective for. */
function drawLargest(of) {
  const node = $(`largest-${of}`);
  if (!node) return;
  const groups = [...grouped(records(`largest_${of}`), "rank").values()];
  fill(node, head(" token", "element", "norm", " top tokens"), body(groups.map((own) => row(make("th", { scope: "row" }, word(tokens[own[0].position].token)), cell(String(own[0].unit)), cell(number(own[0].norm)), make("td", { class: "says" }, ...words(own.map((r) => r.word)))))));
}
drawLargest("columns");
drawLargest("rows");

function drawGeometry() {
  if (!$("geometry").open) return;
  drawSpectrum();
  drawRanks();
  drawPath();
  drawImage();
}
$("geometry").addEventListener("toggle", drawGeometry);
drawings.push([["token", "layer"], drawGeometry]);
if (depths && $("ranks")) fill($("ranks"), head("layer", " of", "stable rank", "σ₀"), body(depths.ranks.map((r) => row(make("th", { scope: "row" }, String(r.layer)), make("td", {}, `${PART[r.part] ?? r.part}, ${r.span}`), cell(number(r.stable_rank)), cell(number(r.sigma_0))))));

// ------------------------------------------------------------------------------------------- the continuation

function drawSteps() {
  if (!tables.steps) return;
  const steps = [...grouped(records("steps"), "step").values()];
  const before = T + steps.length - 1; // the number of tokens before the last step
  if (about.steps.ended !== "steps") $("ended").textContent = `The continuation ended at the ${about.steps.ended}.`;
  const said = [...tokens.map((t) => t.token), ...steps.map((own) => own[0].generated)].slice(0, before);
  const whole = steps.map((own) => Array.from({ length: before }, (_, t) => (t < own.length && own[t].logit ? own[t].contribution / own[t].logit : null)));
  const kept = said.map((_, t) => t).filter((t) => t >= T || columnsShown.includes(t));
  const top = largest(whole.flatMap((own) => kept.filter((t) => t).map((t) => own[t] ?? 0))) || 1;
  const names = make("thead", {}, row(make("th", { scope: "col" }, "generated"), ...["probability", "exact to"].map((name) => make("th", { scope: "col", class: "number" }, name)), ...kept.map((t) => make("th", { scope: "col", class: "of" }, word(said[t])))));
  fill($("step-table"), names, body(steps.map((own, i) => row(make("th", { scope: "row" }, word(own[0].generated)), cell(percent(own[0].probability)), cell(error(own[0].reconstruction)), ...kept.map((t) => {
    const node = cell(whole[i][t] === null ? "" : percent(whole[i][t], 0), { class: "cell number" });
    tinted(node, whole[i][t], top);
    return node;
  })))));
}

// ------------------------------------------------------------------------------------------- how it was computed

function drawMethod() {
  const { how, certificate: c } = about;
  const live = total(Object.values(c.operations));
  const lines = [
    ["model", about.model],
    ["convention of contributions", about.under],
    ["convention of operators", c.convention],
    ["computed in", `${c.dtype}, system in ${c.precision}, on ${how.device}, ${c.attention} attention`],
    ["operations on live tensors", String(live)],
    ["solver", how.solvers.join(", ") + (depths ? `; layers by a ${about.layers.method} sweep, worst reconstruction ${error(depths.reconstruction)}` : "")],
    ["seed", String(how.seed)],
    ["time", Object.entries(how.seconds).map(([what, s]) => `${what} ${number(s, 3)} s`).join(", ") || "not noted"],
    ["memory at the peak", how.memory === null ? "not known" : bytes(how.memory)],
    ["versions", Object.entries(c.versions).map(([name, v]) => `${name} ${v}`).join(", ")],
  ];
  fill($("computed"), ...lines.flatMap(([name, value]) => fact(name, value)));
  fill($("operations"), head(" function", "calls"), body(Object.entries(c.operations).map(([name, n]) => row(make("td", {}, name), cell(String(n))))));
}

drawCertificate();
drawConventions();
drawFaithfulness();
drawTangent();
drawSteps();
drawMethod();
