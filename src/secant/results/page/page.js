// Draws the page of an explanation from its tables. Texts of prompts and tokenizers become text nodes, never HTML.
(() => {
  // ------------------------------------------------------------------------------------------- tables

  // what is drawn is arranged here, once, from the result's own tables
  const texts = []; // each text once; what is drawn names a text by its place
  const places = new Map();
  function place(text) {
    if (!places.has(text)) {
      places.set(text, texts.length);
      texts.push(text);
    }
    return places.get(text);
  }
  function grouped(rows, ...keys) {
    const found = new Map();
    for (const row of rows) {
      const key = keys.map((name) => row[name]).join(" ");
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(row);
    }
    return found;
  }
  const total = (rows) => rows.reduce((sum, row) => sum + row.contribution, 0);

  // a sum of the logit, or of its difference to another's: contributions and totals are in full
  function summed(rows, target, versus, logit, sum) {
    const tokens = rows.filter((r) => r.kind === "token").map((r) => r.contribution);
    return { target: place(target), versus: versus === null ? null : place(versus), logit, total: sum, tokens, constant: total(rows.filter((r) => r.kind === "constant")) };
  }
  function spectrum(vectors, rank) {
    const groups = [...grouped(vectors, "block").values()].map((own) => [own[0].vector, own[own.length - 1].vector + 1]);
    return { S: vectors.map((v) => v.sigma), rank, groups };
  }
  // a list for each vector of a block that has a direction, of its top tokens on one side: [text, score, z]
  function decoded(rows, S, most, z) {
    const found = S.filter((s) => s > 0).slice(0, most).map(() => []);
    for (const r of rows) found[r.vector]?.push([place(r.word), r.score, z(r, found[r.vector].length)]);
    return found;
  }
  function byDepth(chance) {
    if (!tables.layers) return null;
    const rows = records("layers");
    const own = rows.filter((r) => r.position !== null);
    const words = grouped(records("layer_words"), "part", "span", "layer", "position", "side");
    const spectra = grouped(records("spectra"), "layer", "position");
    const of = (r, side) => words.get([r.part, r.span, r.layer, r.position, side].join(" ")) || [];
    const z = (r, rank) => {
      const random = chance[r.side];
      const found = random ? (r.score - random.mean[rank]) / random.std[rank] : null;
      return Number.isFinite(found) ? found : null; // of one vocabulary token, all directions decode to the same
    };
    const stream = own.filter((r) => r.part === "residual" && r.span === "cumulative");
    const blocks = [...grouped(stream, "layer").values()].map((depth) =>
      depth.map((r) => {
        const found = spectrum(spectra.get(`${r.layer} ${r.position}`), r.stable_rank);
        const [writes, reads] = ["output", "input"].map((side) => decoded(of(r, side), found.S, about.layers.vectors, z).map((all) => all.slice(0, about.layers.top)));
        return { ...found, writes, reads };
      }),
    );
    const map = [...grouped(own, "part", "span").values()].map((view) => ({
      part: view[0].part,
      span: view[0].span,
      rows: [...grouped(view, "layer").values()].map((line) => ({
        layer: line[0].layer,
        cells: line.map((r) => of(r, "output").filter((w) => w.vector === 0).slice(0, 3).map((w) => place(w.word))),
      })),
    }));
    map.sort((a, b) => (a.span !== "cumulative") - (b.span !== "cumulative") || (a.part !== "residual") - (b.part !== "residual"));
    return {
      ...about.layers,
      layers: [...new Set(stream.map((r) => r.layer))],
      blocks,
      map,
      ranks: rows.filter((r) => r.position === null).map((r) => ({ ...r, rank: r.stable_rank, sigma: r.sigma_0 })),
      path: tables.path ? records("path") : null,
      reconstruction: Math.max(...rows.map((r) => r.reconstruction)),
    };
  }
  function pictured() {
    if (!tables.image) return null;
    const size = records("image").map((r) => r.size);
    const [R, T, C] = about.rectangles;
    return Array.from({ length: R }, (_, r) => Array.from({ length: T }, (_, t) => size.slice((r * T + t) * C, (r * T + t + 1) * C)));
  }
  function continued(prompt) {
    if (!tables.steps) return null;
    const steps = [...grouped(records("steps"), "step").values()];
    const before = prompt.length + steps.length - 1; // tokens that some step has before it
    const rows = steps.map((own) => ({
      token: place(own[0].generated),
      probability: own[0].probability,
      reconstruction: own[0].reconstruction,
      shares: Array.from({ length: before }, (_, t) => (t < own.length && own[t].logit ? own[t].contribution / own[t].logit : null)),
    }));
    return { ...about.steps, tokens: [...prompt.map((t) => t.text), ...rows.map((r) => r.token)], rows };
  }
  function flowed(tokens) {
    if (!tables.flow) return null;
    return [...grouped(records("flow"), "layer").values()].map((own) => {
      const of = grouped(own, "position");
      return { layer: own[0].layer, tokens: tokens.map((_, t) => total(of.get(String(t)) || [])) };
    });
  }
  function arranged() {
    const rows = records("tokens");
    const tokens = rows.map((r) => ({ text: place(r.token), id: r.id }));
    const prediction = records("predictions");
    const [target] = prediction.map((r) => r.token);
    const contributions = records("contributions");
    const versus = [...grouped(records("versus"), "prediction").values()];
    const words = grouped(records("words"), "position", "side");
    const vectors = grouped(records("singular_values"), "position");
    const [first, ...others] = about.totals;
    const chance = Object.fromEntries([...grouped(records("chance"), "side")].map(([side, own]) => [side, { samples: own[0].samples, mean: own.map((r) => r.mean), std: own.map((r) => r.std) }]));
    return {
      model: about.model,
      certificate: about.certificate,
      origin: about.origin,
      under: about.under,
      baseline: about.baseline,
      tokens,
      prediction: prediction.map((r) => ({ ...r, token: place(r.token) })),
      sums: [summed(contributions, target, null, about.logit, first), ...versus.map((own, i) => summed(own, target, own[0].versus, own[0].difference, others[i]))],
      parts: about.direct === null ? null : contributions.filter((r) => !["token", "constant"].includes(r.kind)).map((r) => ({ ...r, name: place(r.name), direct: r.contribution, through: r.all_paths })),
      flow: flowed(tokens),
      blocks: rows.map((r) => {
        const found = spectrum(vectors.get(String(r.position)), r.stable_rank);
        const [writes, reads] = ["output", "input"].map((side) => decoded(words.get(`${r.position} ${side}`) || [], found.S, Infinity, (w) => w.z));
        return { ...found, norm: r.norm, writes, reads };
      }),
      chance: { writes: chance.output, reads: chance.input },
      depths: byDepth(chance),
      shape: about.shape,
      image: pictured(),
      rebuilt: records("rebuilt"),
      steps: continued(tokens),
      how: about.how,
    };
  }
  const data = arranged();
  const { tokens, blocks, depths, sums } = data;
  const T = tokens.length;
  const $ = (id) => document.getElementById(id);

  function make(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) if (value !== null) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const word = (place) => make("bdi", { dir: "auto" }, texts[place]);
  const cell = (text) => make("td", { class: "number" }, text);
  const fill = (node, ...children) => node.replaceChildren(...children);
  const row = (...cells) => make("tr", {}, ...cells);
  const head = (...names) => make("thead", {}, row(...names.map((name, i) => (name ? make("th", { scope: "col", class: i ? "number" : null }, name) : make("td")))));
  const body = (rows) => make("tbody", {}, ...rows);

  // ------------------------------------------------------------------------------------------- numbers

  const minus = (text) => text.replace("-", "−");
  const number = (x, digits = 4) => (x === null || x === undefined ? "–" : minus(Math.abs(x) >= 1e-4 || x === 0 ? String(Number(x.toPrecision(digits))) : x.toExponential(1)));
  const fixed = (x, places = 2) => (x === null || x === undefined ? "–" : minus(x.toFixed(places)));
  const short = (x) => (x === 0 || x >= 0.1 ? x.toFixed(x < 10 ? 2 : 1) : x >= 1e-4 ? String(Number(x.toPrecision(2))) : minus(x.toExponential(0)));
  const signed = (x) => (x === null || x === undefined ? "–" : (x < 0 ? "−" : "+") + short(Math.abs(x)));
  const share = (x, whole) => (whole ? minus(((100 * x) / whole).toFixed(1)) + " %" : "–");
  const error = (x) => (x === null || x === undefined ? "–" : minus(x.toExponential(1)));
  const size = (bytes) => (bytes >= 2 ** 30 ? (bytes / 2 ** 30).toFixed(1) + " GiB" : (bytes / 2 ** 20).toFixed(0) + " MiB");

  // ------------------------------------------------------------------------------------------- state, in the address

  const largest = sums[0].tokens.reduce((best, x, t, all) => (Math.abs(x) > Math.abs(all[best]) ? t : best), 0);
  const layers = depths ? depths.layers : [];
  const maps = depths ? depths.map : [];
  const ways = (data.flow || []).map((way) => way.layer);
  const usual = { token: largest, layer: null, view: "token", versus: 1, map: 0, find: "", theme: "auto" };
  let state = { ...usual };

  function choice(text, least, most, otherwise) {
    return text !== null && /^\d+$/.test(text) && Number(text) >= least && Number(text) <= most ? Number(text) : otherwise;
  }
  function read() {
    const said = new URLSearchParams(location.hash.slice(1));
    const layer = choice(said.get("layer"), 0, Number.MAX_SAFE_INTEGER, null);
    const views = ["token", ...(sums.length > 1 ? ["versus"] : []), ...(data.flow ? ["layer"] : [])];
    return {
      token: choice(said.get("token"), 0, T - 1, usual.token),
      layer: layers.includes(layer) ? layer : null,
      view: views.includes(said.get("view")) ? said.get("view") : usual.view,
      versus: choice(said.get("versus"), 1, sums.length - 1, usual.versus),
      map: choice(said.get("map"), 0, maps.length - 1, usual.map),
      find: said.get("find") || "",
      theme: ["light", "dark"].includes(said.get("theme")) ? said.get("theme") : usual.theme,
    };
  }
  function address() {
    const said = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) if (name === "token" || value !== usual[name]) said.set(name, value);
    return "#" + said;
  }
  function go(change, quietly = false) {
    const before = state;
    state = { ...state, ...change };
    draw(before);
    if (quietly) location.replace(address());
    else if (location.hash !== address()) location.hash = address();
  }
  window.addEventListener("hashchange", () => {
    const before = state;
    state = read();
    if (JSON.stringify(before) !== JSON.stringify(state)) draw(before);
  });

  // ------------------------------------------------------------------------------------------- the prediction

  function drawPrediction() {
    const best = data.prediction[0];
    fill($("said"), word(best.token));
    const most = data.prediction[0].probability || 1;
    fill(
      $("predictions"),
      head("token", "probability", "logit", ""),
      body(
        data.prediction.slice(0, 10).map((p) => {
          const rule = make("span", { class: "rule", "aria-hidden": "true" });
          rule.style.width = `${(6 * p.probability) / most}rem`;
          return row(make("td", {}, word(p.token)), cell((100 * p.probability).toFixed(p.probability < 0.001 ? 3 : 1) + " %"), cell(fixed(p.logit, 3)), make("td", {}, rule));
        }),
      ),
    );
    const c = data.certificate;
    const lines = [
      ["forward pass", c.forward_equal ? "equal, bit for bit" : "not equal", "The recorded logits against those of the plain model."],
      ["reconstruction", error(c.reconstruction), `‖J x + b − y‖ / ‖y‖: how far the system is from the model's own y. Refused above ${error(c.tolerance)}.`],
      ["affinity", error(c.affinity), `How far the frozen network is from affine, at a random input. Refused above ${error(c.affinity_tolerance)}.`],
      ["constants", share(c.constants, 1), "‖b‖ / ‖y‖: what the model adds whatever the prompt, biases for instance."],
    ];
    if (c.ordinary !== null) lines.push(["ordinary Jacobian", `off by ${(100 * c.ordinary).toFixed(0)} %`, "The same, with the model's ordinary derivative instead of J: the baseline."]);
    if (c.stock !== null) lines.push(["stock casts", error(c.stock), "How far the stock model's casts to float32 take its float64 logits."]);
    fill($("certificate"), ...lines.flatMap(([name, value, says]) => [make("dt", {}, name), make("dd", {}, value, make("small", {}, says))]));
  }

  // ------------------------------------------------------------------------------------------- the prompt

  const way = () => {
    const found = state.layer === null ? ways.length - 1 : ways.indexOf(state.layer);
    return found < 0 ? ways.length - 1 : found;
  };
  const sum = () => (state.view === "versus" ? sums[state.versus] : sums[0]);
  const values = () => (state.view === "layer" ? data.flow[way()].tokens : sum().tokens);
  const buttons = [];

  function buildTokens() {
    tokens.forEach((token, t) => {
      const number = make("small");
      const button = make("button", { type: "button", class: "tok", tabindex: "-1" }, make("span", { class: "hidden" }, `${t}: `), word(token.text), number);
      button.addEventListener("click", () => go({ token: t }));
      buttons.push(button);
    });
    fill($("tokens"), ...buttons);
    $("tokens").addEventListener("keydown", (event) => {
      const at = buttons.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: T - 1 }[event.key];
      if (at < 0 || to === undefined) return;
      event.preventDefault();
      buttons[Math.max(0, Math.min(T - 1, to))].focus();
    });
    $("tokens").addEventListener("focusin", (event) => {
      const at = buttons.indexOf(event.target);
      if (at >= 0) buttons.forEach((button, t) => (button.tabIndex = t === at ? 0 : -1));
    });
    fill($("versus"), ...sums.slice(1).map((s, i) => make("option", { value: String(i + 1) }, texts[s.versus])));
    if (sums.length < 2) $("versus").closest(".pair").remove();
    for (const button of document.querySelectorAll(".switch")) button.addEventListener("click", () => go({ view: button.dataset.view }));
    $("versus")?.addEventListener("change", (event) => go({ view: "versus", versus: Number(event.target.value) }));
  }

  function drawTokens() {
    const own = values();
    const most = Math.max(...own.map(Math.abs)) || 1;
    buttons.forEach((button, t) => {
      button.classList.toggle("plus", own[t] >= 0);
      button.classList.toggle("minus", own[t] < 0);
      button.style.setProperty("--much", (Math.abs(own[t]) / most).toFixed(3));
      button.lastChild.textContent = signed(own[t]);
    });
    for (const button of document.querySelectorAll(".switch")) button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
    if ($("versus")) $("versus").value = String(state.versus);
    if ($("way")) $("way").textContent = ways[way()] === null ? "the embeddings alone" : `layer ${ways[way()]}`;
    const s = sum();
    const from = own.reduce((a, b) => a + b, 0);
    const target = [word(s.target), ...(s.versus === null ? [] : [" over ", word(s.versus)])];
    if (state.view === "layer") {
      const name = ways[way()] === null ? "the embeddings alone" : `layer ${ways[way()]}`;
      fill($("sum"), `What each token contributes to the logit of `, ...target, ` through what ${name} writes, straight: ${signed(from)} of ${fixed(s.logit, 4)}. Over all depths these add up to what the token contributes.`);
    } else {
      const off = Math.abs(s.total - s.logit);
      const negative = s.logit < 0 ? " The logit is negative: a positive share lowers it." : "";
      fill($("sum"), "Logit of ", ...target, ` ${fixed(s.logit, 4)}${data.baseline === null || s.versus !== null ? "" : `, measured from ${data.baseline},`} = tokens ${fixed(from, 4)} + constants ${fixed(s.constant, 4)}, to ${error(off)}.${negative}${data.origin === null ? "" : ` Contributions are measured from x₀, ${data.origin}; the constants include J x₀.`} Convention: ${data.under}.`);
    }
    const whole = state.view === "layer" ? from : s.logit;
    const rows = own.map((x, t) => row(make("td", { class: "number" }, String(t)), make("td", {}, word(tokens[t].text)), cell(String(tokens[t].id)), cell(signed(x)), cell(share(x, whole)), cell(number(blocks[t].norm)), cell(number(blocks[t].S[0])), cell(number(blocks[t].rank))));
    if (state.view !== "layer") rows.push(row(make("td"), make("td", {}, "constants"), make("td"), cell(signed(s.constant)), cell(share(s.constant, whole)), make("td"), make("td"), make("td")));
    const names = head("", "token", "id", "contribution", "share", "‖J x‖", "σ₀", "stable rank");
    names.querySelector("th").className = "";
    fill($("numbers"), names, body(rows));
  }

  function drawChosen() {
    buttons.forEach((button, t) => {
      button.setAttribute("aria-pressed", String(t === state.token));
      button.tabIndex = t === state.token ? 0 : -1;
    });
    fill($("here"), `${state.token} `, word(tokens[state.token].text));
    $("before").disabled = state.token === 0;
    $("after").disabled = state.token === T - 1;
    if (!depths) return;
    const at = state.layer === null ? layers.length : layers.indexOf(state.layer);
    const name = state.layer === null ? "whole network" : `after layer ${state.layer}`;
    $("depth").value = String(at);
    $("depth").setAttribute("aria-valuetext", name);
    $("depth-name").textContent = name;
  }

  function scrollTokens() {
    const strip = $("tokens");
    const { offsetTop: top, offsetHeight: height } = buttons[state.token];
    if (top < strip.scrollTop || top + height > strip.scrollTop + strip.clientHeight) strip.scrollTop = top - strip.clientHeight / 2;
  }

  // ------------------------------------------------------------------------------------------- the block

  const chosen = (t = state.token) => (state.layer === null ? blocks[t] : depths.blocks[layers.indexOf(state.layer)][t]);

  function drawBlock() {
    const block = chosen();
    fill($("block-token"), word(tokens[state.token].text), state.layer === null ? "" : ` after layer ${state.layer}`);
    const whole = state.layer === null ? `, ‖J x‖ ${number(block.norm)}, contribution ${signed(sums[0].tokens[state.token])} (${share(sums[0].tokens[state.token], sums[0].logit)})` : ", from the embeddings to the stream here, read through the final norm";
    $("block-says").textContent = `Token ${state.token}: σ₀ ${number(block.S[0])}, stable rank ${number(block.rank)}${whole}.`;
    const random = ["writes", "reads"].filter((side) => data.chance[side]).map((side) => [side, data.chance[side]]);
    const scores = random.map(([side, { mean, std }]) => `${fixed(mean[0])} ± ${fixed(std[0])} (${side})`);
    $("chance").textContent = random.length ? `The top token of a random direction has a score of ${scores.join(" and ")}, of ${random[0][1].samples} drawn.` : "";
    const group = (i) => block.groups.find(([lo, hi]) => lo <= i && i < hi) || [i, i + 1];
    const parts = block.writes.map((writes, i) => {
      const [lo, hi] = group(i);
      const near = hi - lo > 1 ? ` ≈ vectors ${lo} to ${hi - 1} have near-equal σ: one alone means nothing` : "";
      return make(
        "div", { class: "vector" },
        make("h3", {}, `Vector ${i}, σ ${number(block.S[i])}`, make("span", { class: "muted" }, near)),
        make("div", { class: "sides" }, side("writes (U)", "cosine", writes), side("reads (V)", "cosine", block.reads[i])),
      );
    });
    fill($("vectors"), ...(parts.length ? parts : [make("p", {}, "This block is zero: it has no directions.")]));
    if (state.layer !== null && depths.vectors < block.S.length) $("vectors").append(make("p", { class: "muted" }, `At each depth the page has room for ${depths.vectors} of ${block.S.length} vectors, ${depths.top} top tokens each; the tables have all.`));
  }

  function side(caption, score, words) {
    const rows = words.map(([place, value, z]) => {
      const line = row(make("td", {}, word(place)), cell(fixed(value)), cell(fixed(z, 1)));
      if (z !== null && z < 3) line.className = "weak";
      line.firstChild.dataset.word = String(place);
      return line;
    });
    return make("table", {}, make("caption", {}, caption), head("word", score, "z"), body(rows));
  }

  // ------------------------------------------------------------------------------------------- layer x token

  const NAMES = { residual: "the stream", attn: "attention", mlp: "MLP", mixer: "mixer" };
  let cells = [];
  let rows = [];
  let marked = null;

  function buildMap() {
    fill($("view"), ...maps.map((m, i) => make("option", { value: String(i) }, `${NAMES[m.part] || m.part}, ${m.span === "cumulative" ? "from the embeddings" : "the layer alone"}`)));
    $("view").addEventListener("change", (event) => go({ map: Number(event.target.value) }));
    const at = (node) => [Number(node.parentNode.dataset.row), node.cellIndex - 1];
    $("map").style.minWidth = `${3.6 + 6.4 * T}rem`; // columns of one width: marking a word lays nothing out anew
    $("map").addEventListener("click", (event) => {
      const node = event.target.closest("td");
      if (!node) return;
      const [r, t] = at(node);
      go({ token: t, layer: maps[state.map].rows[r].layer });
    });
    $("map").addEventListener("keydown", (event) => {
      const node = event.target.closest("td");
      if (!node) return;
      const [r, t] = at(node);
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        node.click();
        return;
      }
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -t], End: [0, T - 1 - t] }[event.key];
      if (!step) return;
      event.preventDefault();
      const to = cells[r + step[0]]?.[t + step[1]];
      if (!to) return;
      node.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });
  }

  function drawMap() {
    const map = maps[state.map];
    $("view").value = String(state.map);
    const top = make("tr", {}, make("th", { scope: "col" }, "layer"), ...tokens.map((token) => make("th", { scope: "col" }, word(token.text))));
    cells = [];
    rows = map.rows.map((own, r) => {
      cells.push(own.cells.map((words) => make("td", { role: "gridcell", tabindex: "-1", dir: "auto" }, words.length ? texts[words[0]] : "–")));
      return make("tr", { "data-row": String(r) }, make("th", { scope: "row" }, String(own.layer)), ...cells[r]);
    });
    fill($("map"), make("thead", {}, top), body(rows));
    marked = null;
  }

  function markMap(scroll) {
    const r = maps[state.map].rows.findIndex((own) => own.layer === state.layer);
    const at = r < 0 ? rows.length - 1 : r;
    if (marked) {
      marked.node?.removeAttribute("aria-selected");
      if (marked.node) marked.node.tabIndex = -1;
      marked.row?.classList.remove("current");
      marked.row?.removeAttribute("aria-current");
    }
    const node = cells[at]?.[state.token];
    for (const other of $("map").querySelectorAll('td[tabindex="0"]')) other.tabIndex = -1;
    marked = { row: rows[r], node };
    rows[r]?.classList.add("current");
    rows[r]?.setAttribute("aria-current", "true");
    if (!node) return;
    node.tabIndex = 0;
    if (r >= 0) node.setAttribute("aria-selected", "true");
    if (!scroll) return;
    const frame = $("map-frame");
    const [x, y] = [node.offsetLeft, node.offsetTop];
    if (y < frame.scrollTop + 40 || y > frame.scrollTop + frame.clientHeight - 40) frame.scrollTop = y - frame.clientHeight / 2;
    if (x < frame.scrollLeft + 80 || x > frame.scrollLeft + frame.clientWidth - 80) frame.scrollLeft = x - frame.clientWidth / 2;
  }

  // ------------------------------------------------------------------------------------------- search

  const plain = texts.map((text) => text.replaceAll("·", " ").trim().toLowerCase());
  let hits = [];

  function search() {
    for (const node of hits) node.classList.remove("hit");
    hits = [];
    const wanted = state.find.replaceAll("·", " ").trim().toLowerCase();
    if ($("find").value !== state.find) $("find").value = state.find;
    if (!wanted) {
      $("found").textContent = "";
      return;
    }
    const found = new Set(plain.flatMap((text, i) => (text.includes(wanted) ? [i] : [])));
    tokens.forEach((token, t) => found.has(token.text) && hits.push(buttons[t].querySelector("bdi")));
    for (const node of document.querySelectorAll("[data-word]")) if (found.has(Number(node.dataset.word))) hits.push(node);
    let inMap = 0;
    if (maps.length)
      maps[state.map].rows.forEach((own, r) => own.cells.forEach((words, t) => {
        const place = words.findIndex((w) => found.has(w));
        const node = cells[r][t];
        const text = words.length ? texts[words[Math.max(0, place)]] + (place > 0 ? ` (${place})` : "") : "–";
        if (node.textContent !== text) node.textContent = text;
        if (place >= 0) {
          hits.push(node);
          inMap += 1;
        }
      }));
    for (const node of hits) node.classList.add("hit");
    $("found").textContent = `${hits.length} found` + (inMap ? `, ${inMap} in the map` : "");
  }

  function clearMapTexts() {
    if (maps.length) maps[state.map].rows.forEach((own, r) => own.cells.forEach((words, t) => {
      const text = words.length ? texts[words[0]] : "–";
      if (cells[r][t].textContent !== text) cells[r][t].textContent = text;
    }));
  }

  // ------------------------------------------------------------------------------------------- plots

  // plotly reads a few tags and entities in its labels: none of them may come from a token
  const label = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // M. Okabe and K. Ito, safe for colour blindness
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

  function colours() {
    const probe = make("span");
    document.body.append(probe);
    const of = (name) => {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    };
    const found = Object.fromEntries(["surface", "page", "ink", "muted", "line", "plus", "minus"].map((name) => [name, of(name)]));
    found.positive = of("plus-line");
    found.negative = of("minus-line");
    probe.remove();
    return found;
  }
  const axis = (c, title, more = {}) => ({ title: { text: title, standoff: 8 }, gridcolor: c.line, zerolinecolor: c.line, linecolor: c.line, automargin: true, ...more });
  const layout = (c, x, y, more = {}) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: c.ink, size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 50, r: 15, t: 15, b: 40 }, xaxis: x, yaxis: y, showlegend: false, hoverlabel: { font: { family: "monospace" } }, dragmode: false,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, ...more,
  });

  const plots = {
    spectrum: {
      says: () => `Singular values of the block of token ${state.token}: ${chosen().S.map((s) => number(s)).join(", ")}`,
      draw(c) {
        const others = T > 64 ? [] : tokens.map((_, t) => t).filter((t) => t !== state.token);
        const line = (t, own) => ({
          type: "scatter", mode: own ? "lines+markers" : "lines", x: chosen(t).S.map((_, i) => i), y: chosen(t).S.map((s) => (s > 0 ? s : null)),
          line: { color: own ? c.positive : c.muted, width: own ? 2.5 : 1 }, opacity: own ? 1 : 0.35, marker: { size: 8 }, hoverinfo: own ? "y" : "text", text: label(`${t} ${texts[tokens[t].text]}`),
        });
        return [[...others.map((t) => line(t, false)), line(state.token, true)], layout(c, axis(c, "vector", { dtick: Math.max(1, Math.ceil(chosen().S.length / 10)) }), axis(c, "σ", { type: "log" }))];
      },
    },
    ranks: {
      says: () => "Stable rank by depth; the numbers are below.",
      draw(c) {
        const kinds = maps.map((m, i) => {
          const own = depths.ranks.filter((r) => r.part === m.part && r.span === m.span);
          return { type: "scatter", mode: "lines+markers", name: `${NAMES[m.part] || m.part}${m.span === "cumulative" ? "" : ", alone"}`, x: own.map((r) => r.layer), y: own.map((r) => r.rank), line: { color: COLOURS[i % 6], dash: DASHES[i % 6], width: i ? 1.3 : 2.5 }, marker: { symbol: i, size: 6 } };
        });
        kinds.push({ type: "scatter", mode: "lines", name: "chosen token", x: layers, y: depths.blocks.map((all) => all[state.token].rank), line: { color: c.ink, dash: "dot", width: 2 } });
        const shapes = state.layer === null ? [] : [{ type: "line", x0: state.layer, x1: state.layer, y0: 0, y1: 1, yref: "paper", line: { color: c.muted, width: 1 } }];
        return [kinds, layout(c, axis(c, "layer", { dtick: Math.max(1, Math.ceil(layers.length / 12)) }), axis(c, "stable rank", { type: "log" }), { showlegend: true, shapes, margin: { l: 50, r: 15, t: 60, b: 40 } })];
      },
    },
    path: {
      says: () => "Path of the top two left singular vectors through the layers.",
      draw(c) {
        const lines = [0, 1].map((v) => {
          const own = depths.path.filter((p) => p.vector === v);
          return { type: "scatter", mode: "lines+markers+text", name: `vector ${v}`, x: own.map((p) => p.x), y: own.map((p) => p.y), text: own.map((p) => String(p.layer)), textposition: "top center", hoverinfo: "text", line: { color: COLOURS[v], dash: DASHES[v] }, marker: { symbol: v ? "square" : "circle", size: 7 } };
        });
        return [lines, layout(c, axis(c, "along the last u₀", { range: [-1.3, 1.3] }), axis(c, "along the last u₁", { range: [-1.3, 1.3] }), { showlegend: true, margin: { l: 50, r: 15, t: 40, b: 40 } })];
      },
    },
    parts: {
      says: () => `What writes the logit: ${parted.map((p) => `${texts[p.name]} ${signed(p.direct)}`).slice(0, 12).join(", ")}`,
      draw(c) {
        const own = [...parted].reverse();
        const bars = { type: "bar", orientation: "h", x: own.map((p) => p.direct), y: own.map((_, i) => i), text: own.map((p) => label(`${texts[p.name]} ${signed(p.direct)}`)), textposition: "none", hoverinfo: "text", marker: { color: own.map((p) => (p.direct >= 0 ? c.plus : c.minus)), line: { color: own.map((p) => (p.direct >= 0 ? c.positive : c.negative)), width: 1 }, pattern: { shape: own.map((p) => (p.direct >= 0 ? "" : "/")), fgcolor: c.negative } } };
        return [[bars], layout(c, axis(c, "logit"), axis(c, "", { tickvals: own.map((_, i) => i), ticktext: own.map((p) => label(texts[p.name])), tickfont: { size: own.length > 30 ? 8 : 10 } }))];
      },
    },
    heads: {
      says: () => "Contribution of each head; the numbers are below.",
      draw(c) {
        const own = heads.filter((h) => h.head !== null);
        const across = [...new Set(own.map((h) => h.head))].sort((a, b) => a - b);
        const down = [...new Set(own.map((h) => h.layer))].sort((a, b) => a - b);
        const of = new Map(own.map((h) => [`${h.layer} ${h.head}`, h.direct]));
        const z = down.map((l) => across.map((h) => of.get(`${l} ${h}`) ?? null));
        const most = Math.max(...own.map((h) => Math.abs(h.direct))) || 1;
        const map = { type: "heatmap", x: across, y: down, z, zmin: -most, zmax: most, colorscale: [[0, c.minus], [0.5, c.surface], [1, c.plus]], xgap: 1, ygap: 1, hovertemplate: "layer %{y}, head %{x}: %{z:.3f}<extra></extra>", colorbar: { thickness: 10, outlinewidth: 0 }, ...(own.length <= 200 ? { texttemplate: "%{z:.2g}", textfont: { size: 10, color: c.ink } } : {}) };
        return [[map], layout(c, axis(c, "head", { dtick: Math.max(1, Math.ceil(across.length / 16)), showgrid: false }), axis(c, "layer", { dtick: Math.max(1, Math.ceil(down.length / 16)), showgrid: false }))];
      },
    },
    image: {
      says: () => $("image-says").textContent,
      draw(c) {
        const { image, shape } = data;
        const C = image[0][0].length;
        const values = image.map((line) => line.flat());
        const z = values.map((line) => line.map((v) => (v > 0 ? Math.log10(v) : null)));
        const most = Math.max(...z.map((line) => Math.max(...line.map((v) => v ?? -Infinity))));
        const decades = [0, 0.5, 1, 1.5, 2].map((down) => most - down);
        const dark = matchMedia("(prefers-color-scheme: dark)").matches ? state.theme !== "light" : state.theme === "dark";
        const step = Math.max(1, Math.ceil(T / 16));
        const at = tokens.map((_, t) => t).filter((t) => t % step === 0);
        const map = { type: "heatmap", z, zmin: most - 2, zmax: most, text: values.map((line) => line.map((v) => number(v, 3))), y: image.map((_, r) => Math.floor((r * shape[0]) / image.length)), colorscale: "Cividis", reversescale: !dark, hoverinfo: "text", colorbar: { thickness: 10, outlinewidth: 0, tickvals: decades, ticktext: decades.map((v) => number(10 ** v, 2)) } };
        const lines = T > 64 ? [] : tokens.slice(1).map((_, t) => ({ type: "line", x0: (t + 1) * C - 0.5, x1: (t + 1) * C - 0.5, y0: 0, y1: 1, yref: "paper", line: { color: c.surface, width: 2 } }));
        const own = { type: "rect", x0: state.token * C - 0.5, x1: (state.token + 1) * C - 0.5, y0: 0, y1: 1, yref: "paper", line: { color: c.ink, width: 2 } };
        const name = (t) => {
          const signs = [...texts[tokens[t].text]];
          return signs.length > 12 ? signs.slice(0, 11).join("") + "…" : signs.join("");
        };
        return [[map], layout(c, axis(c, "token", { tickvals: at.map((t) => t * C + (C - 1) / 2), ticktext: at.map((t) => label(name(t))), showgrid: false }), axis(c, "unit of y", { autorange: "reversed", showgrid: false }), { shapes: [...lines, own] })];
      },
    },
    rebuilt: {
      says: () => $("rebuilt-says").textContent,
      draw(c) {
        const [output, rebuilt, ordinary] = ["output", "rebuilt", "ordinary"].map((name) => data.rebuilt.map((r) => r[name]));
        const ends = [Math.min(...output), Math.max(...output)];
        const dots = (name, y, marker) => ({ type: "scatter", mode: "markers", name, x: output, y, marker, hoverinfo: "x+y" });
        return [
          [
            { type: "scatter", mode: "lines", x: ends, y: ends, name: "equal", line: { color: c.muted, width: 1 }, hoverinfo: "skip" },
            dots("ordinary J′ x", ordinary, { color: c.negative, symbol: "x-thin-open", size: 6 }),
            dots("J x + b", rebuilt, { color: c.positive, symbol: "circle", size: 5 }),
          ],
          layout(c, axis(c, "y, the model's own"), axis(c, "rebuilt"), { showlegend: true, margin: { l: 50, r: 15, t: 40, b: 40 } }),
        ];
      },
    },
  };
  const parted = (data.parts || []).filter((p) => p.kind !== "head");
  const heads = (data.parts || []).filter((p) => p.kind === "head");
  const near = new Set();
  const stale = new Set();

  function plot(names) {
    for (const name of names) if ($(`plot-${name}`)) stale.add(name);
    setTimeout(drawPlots);
  }
  function drawPlots() {
    if (!window.Plotly) return;
    const c = colours();
    for (const name of [...stale]) {
      if (!near.has(name)) continue;
      stale.delete(name);
      const node = $(`plot-${name}`);
      const [traces, where] = plots[name].draw(c);
      window.Plotly.react(node, traces, where, { displayModeBar: false, responsive: true, scrollZoom: false });
      node.setAttribute("role", "img");
      node.setAttribute("aria-label", plots[name].says());
    }
  }
  function watchPlots() {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const name = entry.target.id.slice("plot-".length);
        if (entry.isIntersecting) near.add(name);
        else near.delete(name);
      }
      drawPlots();
    }, { rootMargin: "300px" });
    for (const name of Object.keys(plots)) if ($(`plot-${name}`)) seen.observe($(`plot-${name}`));
  }

  // ------------------------------------------------------------------------------------------- what does not change

  function drawRest() {
    const [d, , width] = data.shape;
    const whole = `J, ${d} x ${T} tokens x ${width}: `;
    $("image-says").textContent = whole + (data.image ? `root mean square of each rectangle of ${data.image.length} x ${data.image[0][0].length} a token, two decades of it; the frame is the chosen token's block.` : "its image was left out of this page, since it takes every row of J.");
    const off = data.certificate.ordinary === null ? "" : ` The ordinary Jacobian, without b, is off by ${(100 * data.certificate.ordinary).toFixed(0)} %.`;
    const some = data.rebuilt.length < d ? `${data.rebuilt.length} of ${d}` : `all ${d}`;
    $("rebuilt-says").textContent = `y against J x + b, ${some} units: on the line to ${error(data.certificate.reconstruction)}.${off}`;
    if (data.parts) {
      if (!heads.length) $("figure-heads").remove();
      const names = head("part", "straight", "share", "by all paths");
      fill($("part-numbers"), names, body(data.parts.map((p) => row(make("td", {}, word(p.name)), cell(signed(p.direct)), cell(share(p.direct, sums[0].logit)), cell(signed(p.through))))));
      const height = Math.min(900, Math.max(320, 60 + 18 * parted.length));
      $("plot-parts").style.height = `${height}px`;
    }
    if (depths) fill($("ranks"), head("layer", "of", "stable rank", "σ₀"), body(depths.ranks.map((r) => row(make("td", {}, String(r.layer)), cell(`${NAMES[r.part] || r.part}, ${r.span}`), cell(number(r.rank)), cell(number(r.sigma))))));
    if (data.steps) drawSteps();
    const { how, certificate: c } = data;
    const held = Object.values(c.operations).reduce((a, b) => a + b, 0);
    const lines = [
      ["model", data.model], ["convention", `${c.convention}: which exact affine map stands for each operation`], ["computed in", `${c.dtype}, system in ${c.precision}, on ${how.device}, ${c.attention} attention`],
      ["live operations", String(held)], ["solver", how.solvers.join(", ") + (depths ? `; layers by a ${depths.method} sweep, worst reconstruction ${error(depths.reconstruction)}` : "")], ["seed", String(how.seed)],
      ["time", Object.entries(how.seconds).map(([what, s]) => `${what} ${number(s, 3)} s`).join(", ") || "not noted"],
      ["memory at the peak", how.memory === null ? "not known" : size(how.memory)],
      ["versions", Object.entries(c.versions).map(([name, v]) => `${name} ${v}`).join(", ")],
    ];
    fill($("computed"), ...lines.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    fill($("operations"), head("function", "calls"), body(Object.entries(c.operations).map(([name, n]) => row(make("td", {}, name), cell(String(n))))));
  }

  function drawSteps() {
    const s = data.steps;
    if (s.ended !== "steps") $("ended").textContent = `It ended at the ${s.ended}.`;
    const names = make("thead", {}, row(...["generated", "probability", "exact to"].map((name) => make("th", { scope: "col" }, name)), ...s.tokens.slice(0, -1).map((t) => make("th", { scope: "col", class: "number" }, word(t)))));
    fill($("step-table"), names, body(s.rows.map((r) => row(make("td", {}, word(r.token)), cell((100 * r.probability).toFixed(1) + " %"), cell(error(r.reconstruction)), ...r.shares.map((x) => cell(x === null ? "" : share(x, 1)))))));
  }

  // ------------------------------------------------------------------------------------------- drawing

  function draw(before) {
    const changed = (...names) => before === null || names.some((name) => before[name] !== state[name]);
    if (changed("theme")) {
      document.documentElement.dataset.theme = state.theme;
      $("theme").value = state.theme;
    }
    if (changed("token", "layer")) drawChosen();
    if (changed("view", "versus") || (state.view === "layer" && changed("layer"))) drawTokens();
    if (changed("token")) scrollTokens();
    if (changed("token", "layer")) drawBlock();
    if (maps.length) {
      if (changed("map")) drawMap();
      if (changed("token", "layer", "map")) markMap(before !== null || location.hash !== "");
    }
    if (changed("find", "token", "layer", "map")) {
      if (before !== null && before.find && before.find !== state.find) clearMapTexts();
      search();
    }
    if (changed("theme")) plot(Object.keys(plots));
    else if (changed("token", "layer")) plot(["spectrum", "ranks", "image"]);
  }

  drawPrediction();
  buildTokens();
  if (maps.length) buildMap();
  drawRest();
  state = read();
  draw(null);

  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address keeps its state
    $("prompt").focus();
  });
  $("before").addEventListener("click", () => go({ token: state.token - 1 }));
  $("after").addEventListener("click", () => go({ token: state.token + 1 }));
  $("depth")?.addEventListener("input", (event) => go({ layer: layers[Number(event.target.value)] ?? null }, true));
  $("find").addEventListener("input", (event) => go({ find: event.target.value }, true));
  $("theme").addEventListener("change", (event) => go({ theme: event.target.value }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot(Object.keys(plots)));
  document.addEventListener("DOMContentLoaded", watchPlots); // plotly is read by then
})();
