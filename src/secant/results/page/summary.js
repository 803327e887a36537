// Draws the page of a summary from its tables. Texts become text nodes, never HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = Object.fromEntries(["measures", "ranks", "spectra", "depths", "emergence", "shares", "overlaps", "conventions"].map((name) => [name, records(`summary_${name}`)]));
  data.coverage = records("coverage");
  data.failures = records("failures");
  const distinct = (values) => [...new Set(values)];
  const subjects = distinct(data.coverage.map((r) => JSON.stringify([r.model, r.convention]))).map((text) => JSON.parse(text)).map(([model, convention]) => ({ model, convention }));
  const models = distinct(subjects.map((s) => s.model));
  const categories = distinct(data.coverage.map((r) => r.category)).filter((category) => category !== null);

  function make(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) if (value !== null) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  const fill = (node, ...children) => node && node.replaceChildren(...children);
  const row = (...cells) => make("tr", {}, ...cells);
  const minus = (text) => text.replace("-", "−");
  const number = (x, digits = 4) => (x === null ? "–" : minus(Math.abs(x) >= 1e-4 || x === 0 ? String(Number(x.toPrecision(digits))) : x.toExponential(1)));
  // plotly reads a few tags and entities in its labels: none of them may come from a name
  const label = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const brief = (text, most = 28) => {
    const signs = [...text];
    return signs.length > most ? signs.slice(0, most - 1).join("") + "…" : text;
  };
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // M. Okabe and K. Ito, safe for colour blindness
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "star", "pentagon"];

  // ------------------------------------------------------------------------------------------- tables

  /** All columns of some rows of a table, but those that say the same of each, such as the chosen category. */
  function table(id, rows, without = []) {
    const node = $(id);
    if (!node) return;
    const names = Object.keys(rows[0] ?? {}).filter((name) => !without.includes(name));
    const texts = new Set(names.filter((name) => rows.some((r) => typeof r[name] === "string")));
    const head = make("thead", {}, row(...names.map((name) => make("th", { scope: "col", class: texts.has(name) ? null : "number" }, name.replaceAll("_", " ")))));
    const cell = (r, name) => {
      if (r[name] === null) return make("td", { class: texts.has(name) ? null : "number" }, ALL[name] ?? "–");
      return texts.has(name) ? make("td", {}, make("bdi", { dir: "auto" }, brief(r[name], 200))) : make("td", { class: "number" }, number(r[name]));
    };
    fill(node, head, make("tbody", {}, ...rows.map((r) => row(...names.map((name) => cell(r, name))))));
  }
  const ALL = { category: "all", position: "all", part: "" };

  // ------------------------------------------------------------------------------------------- what is chosen

  let state = { category: null, part: null, position: null, theme: "auto" };
  const chosen = (rows) => rows.filter((r) => r.category === state.category);
  const of = (rows, s) => rows.filter((r) => r.model === s.model && r.convention === s.convention);
  const name = (s) => label(brief(models.length > 1 ? s.model : "") + (models.length > 1 && conventions > 1 ? ", " : "") + (conventions > 1 || models.length < 2 ? s.convention : ""));
  const conventions = new Set(subjects.map((s) => s.convention)).size;

  function colours() {
    const probe = make("span");
    document.body.append(probe);
    const found = Object.fromEntries(["surface", "ink", "muted", "line"].map((key) => {
      probe.style.color = `var(--${key})`;
      return [key, getComputedStyle(probe).color];
    }));
    probe.remove();
    return found;
  }
  const axis = (c, title, more = {}) => ({ title: { text: title, standoff: 8 }, gridcolor: c.line, zerolinecolor: c.line, linecolor: c.line, automargin: true, ...more });
  const layout = (c, x, y, more = {}) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: c.ink, size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 50, r: 15, t: 50, b: 40 }, xaxis: x, yaxis: y, showlegend: true, dragmode: false, hoverlabel: { font: { family: "monospace" } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, ...more,
  });
  const says = (r, key) => `${key}: ${number(r.mean)}${r.low === null ? "" : ` [${number(r.low)}, ${number(r.high)}]`}, n ${r.n}`;
  const bars = (rows) => ({ type: "data", symmetric: false, array: rows.map((r) => (r.high === null ? 0 : Math.max(0, r.high - r.mean))), arrayminus: rows.map((r) => (r.low === null ? 0 : Math.max(0, r.mean - r.low))), thickness: 1.2, width: 3 });
  const shade = (hex) => `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},0.18)`;

  /** A point with its interval for each key, side by side for each model and convention. */
  function dots(rows, keys, key) {
    return subjects.map((s, i) => {
      const own = keys.map((k) => [k, of(rows, s).find((r) => key(r) === k[0])]).filter(([, r]) => r);
      const shift = subjects.length > 1 ? 0.5 * (i / (subjects.length - 1) - 0.5) : 0;
      return {
        type: "scatter", mode: "markers", name: name(s), x: own.map(([k]) => keys.indexOf(k) + shift), y: own.map(([, r]) => r.mean), error_y: bars(own.map(([, r]) => r)),
        marker: { color: COLOURS[i % 6], symbol: SYMBOLS[i % 6], size: 9 }, hoverinfo: "text", text: own.map(([k, r]) => says(r, `${name(s)}, ${k[1]}`)),
      };
    });
  }
  const among = (keys) => ({ tickvals: keys.map((_, i) => i), ticktext: keys.map((k) => k[1]), range: [-0.5, keys.length - 0.5], zeroline: false, showgrid: false });

  /** A line and the band of its interval, for each model and convention. */
  function curves(rows, x) {
    return subjects.flatMap((s, i) => {
      const own = of(rows, s).sort((a, b) => a[x] - b[x]);
      if (!own.length) return [];
      const at = own.map((r) => r[x]);
      const edge = (end) => own.map((r) => r[end] ?? r.mean);
      return [
        { type: "scatter", mode: "lines", x: [...at, ...at.toReversed()], y: [...edge("high"), ...edge("low").toReversed()], fill: "toself", fillcolor: shade(COLOURS[i % 6]), line: { width: 0 }, hoverinfo: "skip", showlegend: false },
        { type: "scatter", mode: "lines+markers", name: name(s), x: at, y: own.map((r) => r.mean), line: { color: COLOURS[i % 6], dash: DASHES[i % 6] }, marker: { symbol: SYMBOLS[i % 6], size: 6 }, hoverinfo: "text", text: own.map((r) => says(r, `${name(s)}, ${number(r[x], 3)}`)) },
      ];
    });
  }

  const EXACT = [["reconstruction", "J x + b"], ["ordinary", "ordinary J′ x"]];
  const WORDS = [["writes_together", "U₀, all"], ["writes_last", "U₀, last"], ["writes_any", "U₀, any"], ["reads_own", "V₀, own"]];
  const KINDS = [["token", "tokens"], ["constant", "constants"], ["embed", "embeddings"], ["layer", "layers"], ["layer attn", "attention"], ["layer mlp", "MLPs"], ["layer mixer", "mixers"], ["outside", "outside"]];
  const percent = (c, title) => axis(c, title, { tickformat: ".0%", rangemode: "tozero" });
  const share = (r) => (r.part ? `${r.kind} ${r.part}` : r.kind);
  const part = () => state.part || [];

  const plots = {
    exact: (c) => [dots(chosen(data.measures), EXACT, (r) => r.measure), layout(c, axis(c, "", among(EXACT)), axis(c, "error over ‖y‖", { type: "log", exponentformat: "power" }))],
    words: (c) => [dots(chosen(data.measures), WORDS, (r) => r.measure), layout(c, axis(c, "", among(WORDS)), axis(c, "share", { tickformat: ".0%", range: [-0.03, 1.03] }))],
    ranks(c) {
      const [, common] = about.positions.find(([category]) => category === state.category);
      const rows = chosen(data.ranks).filter((r) => common.includes(r.position));
      const traces = subjects.map((s, i) => {
        const own = of(rows, s);
        return {
          type: "box", name: name(s), x: own.map((r) => r.position), q1: own.map((r) => r.q25), median: own.map((r) => r.median), q3: own.map((r) => r.q75),
          lowerfence: own.map((r) => r.q05), upperfence: own.map((r) => r.q95), mean: own.map((r) => r.mean), boxmean: true, marker: { color: COLOURS[i % 6] }, line: { width: 1.5 }, hoverinfo: "x+y",
        };
      });
      return [traces, layout(c, axis(c, "position of the token", { dtick: Math.max(1, Math.ceil(Math.max(...rows.map((r) => r.position)) / 16)) }), axis(c, "stable rank", { type: "log" }), { boxmode: "group" })];
    },
    spectra(c) {
      const rows = chosen(data.spectra).filter((r) => r.position === state.position);
      return [curves(rows, "vector"), layout(c, axis(c, "i", { dtick: 1 }), axis(c, "σᵢ/σ₀", { range: [0, 1.05] }))];
    },
    depths(c) {
      const rows = chosen(data.depths).filter((r) => r.part === part()[0] && r.span === part()[1]);
      return [curves(rows, "depth"), layout(c, axis(c, "share of depth", { range: [0, 1.03] }), axis(c, "stable rank", { type: "log" }))];
    },
    emergence(c) {
      const rows = chosen(data.emergence).filter((r) => r.part === part()[0] && r.span === part()[1]);
      return [curves(rows, "depth"), layout(c, axis(c, "share of depth", { range: [0, 1.03] }), axis(c, "prediction seen", { tickformat: ".0%", range: [-0.03, 1.03] }))];
    },
    shares(c) {
      const rows = chosen(data.shares);
      const there = KINDS.filter(([kind]) => rows.some((r) => share(r) === kind));
      return [dots(rows, there, share), layout(c, axis(c, "", among(there)), percent(c, "share of the logit"))];
    },
    overlaps(c) {
      const rows = chosen(data.overlaps);
      const keys = [["together output", "all, written"], ["last output", "last, written"], ["tokens output", "each, written"], ["last input", "last, read"], ["tokens input", "each, read"]];
      const key = (r) => `${r.of} ${r.side}`;
      const pair = (r) => JSON.stringify([r.model, r.convention, r.other, r.other_convention]);
      const pairs = [...new Set(rows.map(pair))];
      const traces = pairs.flatMap((p, i) => {
        const own = keys.map((k) => [k, rows.find((r) => pair(r) === p && key(r) === k[0])]).filter(([, r]) => r);
        const [model, convention, other, otherConvention] = JSON.parse(p);
        const title = `${name({ model, convention })} – ${name({ model: other, convention: otherConvention })}`;
        const x = own.map(([k]) => keys.indexOf(k) + (pairs.length > 1 ? 0.6 * (i / (pairs.length - 1) - 0.5) : 0));
        return [
          { type: "scatter", mode: "markers", name: title, x, y: own.map(([, r]) => r.mean), error_y: bars(own.map(([, r]) => r)), marker: { color: COLOURS[i % 6], symbol: SYMBOLS[i % 6], size: 9 }, hoverinfo: "text", text: own.map(([k, r]) => says(r, `${title}, ${k[1]}`)) },
          { type: "scatter", mode: "markers", x, y: own.map(([, r]) => r.chance), marker: { color: c.muted, symbol: "x-thin-open", size: 9 }, showlegend: false, hoverinfo: "text", text: own.map(([, r]) => `chance: ${number(r.chance)}`) },
        ];
      });
      return [traces, layout(c, axis(c, "", among(keys)), percent(c, "top tokens in common"))];
    },
  };

  const near = new Set();
  const stale = new Set();
  function plot(names) {
    for (const each of names) if ($(`plot-${each}`)) stale.add(each);
    setTimeout(drawPlots);
  }
  function drawPlots() {
    if (!window.Plotly) return;
    const c = colours();
    for (const each of [...stale]) {
      if (!near.has(each)) continue;
      stale.delete(each);
      const node = $(`plot-${each}`);
      const [traces, where] = plots[each](c);
      window.Plotly.react(node, traces, where, { displayModeBar: false, responsive: true, scrollZoom: false });
      node.setAttribute("role", "img");
      node.setAttribute("aria-label", `${node.nextElementSibling.textContent} The numbers are below.`);
    }
  }

  function drawTables() {
    table("coverage", chosen(data.coverage));
    const here = (r) => r.part === part()[0] && r.span === part()[1];
    const shown = { spectra: (r) => r.position === state.position, depths: here, emergence: here };
    for (const [name, rows] of Object.entries(data)) table(`numbers-${name}`, chosen(rows).filter(shown[name] ?? (() => true)), ["category"]);
  }
  function draw() {
    document.documentElement.dataset.theme = state.theme;
    drawTables();
    plot(Object.keys(plots));
  }
  function go(change) {
    state = { ...state, ...change };
    draw();
  }

  table("failures", data.failures);
  const options = (node, all) => fill(node, ...all.map(([value, text]) => make("option", { value }, text)));
  if ($("category")) {
    options($("category"), [["all", "all"], ...categories.map((text, i) => [String(i), brief(text)])]);
    $("category").addEventListener("change", (event) => go({ category: event.target.value === "all" ? null : categories[Number(event.target.value)] }));
  }
  if ($("position")) {
    const places = [...new Set(data.spectra.map((r) => r.position))].sort((a, b) => (a ?? -1) - (b ?? -1));
    state.position = places[0];
    options($("position"), places.map((p) => [String(p), p === null ? "all tokens together" : `position ${p}`]));
    $("position").addEventListener("change", (event) => go({ position: event.target.value === "null" ? null : Number(event.target.value) }));
  }
  if ($("part")) {
    const kinds = [...new Set([...data.depths, ...data.emergence].map((r) => JSON.stringify([r.part, r.span])))];
    const first = kinds.indexOf('["residual","cumulative"]');
    if (first > 0) kinds.unshift(...kinds.splice(first, 1));
    state.part = JSON.parse(kinds[0]);
    options($("part"), kinds.map((kind, i) => [String(i), JSON.parse(kind).join(", ")]));
    $("part").addEventListener("change", (event) => go({ part: JSON.parse(kinds[Number(event.target.value)]) }));
  }
  $("theme").addEventListener("change", (event) => go({ theme: event.target.value }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot(Object.keys(plots)));
  draw();
  document.addEventListener("DOMContentLoaded", () => {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const each = entry.target.id.slice("plot-".length);
        if (entry.isIntersecting) near.add(each);
        else near.delete(each);
      }
      drawPlots();
    }, { rootMargin: "300px" });
    for (const each of Object.keys(plots)) if ($(`plot-${each}`)) seen.observe($(`plot-${each}`));
  });
})();
