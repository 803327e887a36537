// Small charts as SVG, drawn at their node's width, and redrawn if it changes. Colours come from the style sheet.

const charts = new Map(); // what each node shows
const widths = new ResizeObserver((entries) => {
  for (const entry of entries) {
    const own = charts.get(entry.target);
    if (own && entry.contentRect.width && Math.abs(entry.contentRect.width - own.width) > 1) charted(entry.target, own.spec);
  }
});
signal.addEventListener("abort", () => widths.disconnect());

/** About n round numbers in a range. */
function rounds(low, high, n) {
  const raw = (high - low) / Math.max(1, n) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= raw * 0.999) ?? 10);
  const [from, to] = [Math.ceil(low / step - 1e-9), Math.floor(high / step + 1e-9)];
  return Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => Number(((from + i) * step).toPrecision(12)));
}

/** An axis: maps values to positions between 0 and 1, and has ticks with labels. */
function scaled(axis, values, room) {
  const there = values.filter((x) => Number.isFinite(x) && (!axis.log || x > 0));
  let [low, high] = axis.range ?? [Math.min(...there), Math.max(...there)];
  if (!there.length && !axis.range) [low, high] = axis.log ? [1, 10] : [0, 1];
  if (axis.zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (axis.keys) {
    const at = (x) => (x + 0.5) / axis.keys.length;
    return { at, ticks: axis.keys.map((name, i) => [at(i), name]) };
  }
  if (axis.log) {
    if (low === high) [low, high] = [low / 2, high * 2];
    const [a, b] = [Math.log10(low), Math.log10(high)];
    const at = (x) => (x > 0 ? (Math.log10(x) - a) / (b - a) : null);
    const powers = Array.from({ length: Math.floor(b) - Math.floor(a) + 1 }, (_, i) => Math.floor(a) + i);
    const within = (...of) => powers.flatMap((p) => of.map((m) => Number((m * 10 ** p).toPrecision(3)))).filter((x) => x >= low * 0.999 && x <= high * 1.001);
    const [whole, some, all] = [within(1), within(1, 2, 5), within(1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)];
    const found = whole.length > 3 ? whole.filter((_, i) => i % Math.ceil(whole.length / (room + 1)) === 0) : some.length > 2 ? some : all.length > 1 ? all : [low, high];
    return { at, ticks: found.map((x) => [at(x), number(x, 3)]) };
  }
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const at = (x) => (x - low) / (high - low);
  const ticks = rounds(low, high, room).filter((x) => !axis.whole || Number.isInteger(x));
  const said = (x) => minus(axis.percent ? `${Number((100 * x).toPrecision(6))} %` : String(Number(x.toPrecision(6))));
  return { at, ticks: ticks.map((x) => [at(x), said(x)]) };
}

const SHAPES = ["M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-3.5,-3.5h7v7h-7z", "M0,-5l5,5l-5,5l-5,-5z", "M0,-4.5l4.5,8h-9z", "M-4,-4l8,8m0,-8l-8,8", "M0,-5v10m-5,-5h10"];

/** Draws a chart: `x`, `y` (label, log, range, percent, whole, zero, keys), `series` (name, points of x, y and their
 *  text, low, high; or q1, q3, low, high, mean as boxes; `line`, `marks`, `names`), and a `rule` at some x. */
function charted(node, spec) {
  if (!node) return;
  if (!charts.has(node)) widths.observe(node);
  const width = Math.floor(node.clientWidth);
  charts.set(node, { spec, width });
  if (!width) return;
  const height = spec.height ?? 280;
  const [left, right, top] = [58, 12, 10];
  const w = width - left - right;
  const longest = Math.max(0, ...(spec.x.keys ?? []).map((k) => k.length)) * 6.5;
  const slanted = longest * (spec.x.keys?.length ?? 0) > w - 8 * (spec.x.keys?.length ?? 0); // names would overlap if they were horizontal
  const bottom = (spec.x.label ? 42 : 28) + (slanted ? longest * 0.6 : 0);
  const h = height - top - bottom;
  const points = spec.series.flatMap((s) => s.points);
  const x = scaled(spec.x, points.map((p) => p.x), Math.max(2, w / 60));
  const y = scaled(spec.y, points.flatMap((p) => [p.y, p.low, p.high].filter((v) => !missing(v))), 5);
  const X = (v) => left + w * x.at(v);
  const Y = (v) => top + h * (1 - y.at(v));
  const shown = (p) => !missing(p.y) && x.at(p.x) !== null && y.at(p.y) !== null;
  const svg = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spec.says });
  for (const [at, text] of y.ticks) {
    svg.append(drawn("line", { class: "grid", x1: left, x2: left + w, y1: top + h * (1 - at), y2: top + h * (1 - at) }));
    svg.append(drawn("text", { x: left - 6, y: top + h * (1 - at) + 4, "text-anchor": "end" }, text));
  }
  const every = spec.x.keys ? 1 : Math.ceil((x.ticks.length * 34) / w);
  for (const [i, [at, text]] of x.ticks.entries()) {
    const where = slanted ? { transform: `translate(${left + w * at + 4},${top + h + 14}) rotate(-38)`, "text-anchor": "end" } : { x: left + w * at, y: top + h + 17, "text-anchor": "middle" };
    if (i % every === 0) svg.append(drawn("text", where, text));
  }
  svg.append(drawn("path", { class: "axes", d: `M${left},${top}v${h}h${w}` }));
  if (spec.x.label) svg.append(drawn("text", { class: "name", x: left + w / 2, y: height - 5, "text-anchor": "middle" }, spec.x.label));
  if (spec.y.label) svg.append(drawn("text", { class: "name", transform: `translate(13,${top + h / 2}) rotate(-90)`, "text-anchor": "middle" }, spec.y.label));
  if (!missing(spec.rule)) svg.append(drawn("line", { class: "rule", x1: X(spec.rule), x2: X(spec.rule), y1: top, y2: top + h }));
  for (const s of spec.series) {
    const colour = s.colour ?? "c0";
    const own = s.points.filter(shown);
    const group = drawn("g", { class: `series ${colour}${s.thin ? " thin" : ""}` });
    const banded = s.line && own.length > 1 && own.some((p) => !missing(p.low));
    if (banded) group.append(drawn("path", { class: "band", d: `M${own.map((p) => `${X(p.x)},${Y(p.high ?? p.y)}`).join("L")}L${[...own].reverse().map((p) => `${X(p.x)},${Y(p.low ?? p.y)}`).join("L")}z` }));
    if (s.line) group.append(drawn("path", { class: `line ${s.line}`, d: own.length ? `M${own.map((p) => `${X(p.x).toFixed(1)},${Y(p.y).toFixed(1)}`).join("L")}` : "" }));
    for (const p of own) {
      const mark = drawn("g", { transform: `translate(${X(p.x).toFixed(1)},${Y(p.y).toFixed(1)})` });
      const to = (v) => (Y(v) - Y(p.y)).toFixed(1);
      if (s.box && !missing(p.q1)) {
        const half = Math.max(2, Math.min(12, (w / Math.max(1, own.length) / s.of) * 0.35));
        mark.append(drawn("path", { class: "whisker", d: `M0,${to(p.low)}V${to(p.q1)}M0,${to(p.q3)}V${to(p.high)}` }));
        mark.append(drawn("rect", { class: "box", x: -half, width: 2 * half, y: to(p.q3), height: Math.max(1, Y(p.q1) - Y(p.q3)).toFixed(1) }));
        mark.append(drawn("path", { class: "whisker", d: `M${-half},0h${2 * half}` }));
      } else if (!banded && !missing(p.low)) mark.append(drawn("path", { class: "whisker", d: `M0,${to(p.low)}V${to(p.high)}M-4,${to(p.low)}h8M-4,${to(p.high)}h8` }));
      if (s.marks !== undefined && !s.box) mark.append(drawn("path", { class: "mark", d: SHAPES[s.marks % SHAPES.length] }));
      if (s.names && p.name !== undefined) mark.append(drawn("text", { y: -8, "text-anchor": "middle" }, p.name));
      if (p.says) mark.append(drawn("title", {}, p.says));
      group.append(mark);
    }
    svg.append(group);
  }
  const key = make("ul", { class: "key" });
  for (const s of spec.series)
    if (s.name && spec.series.filter((other) => other.name).length > 1) {
      const sign = drawn("svg", { width: 26, height: 12, "aria-hidden": "true" }, drawn("g", { class: `series ${s.colour ?? "c0"}`, transform: "translate(13,6)" }, ...(s.line ? [drawn("path", { class: `line ${s.line}`, d: "M-13,0h26" })] : []), ...(s.marks !== undefined ? [drawn("path", { class: "mark", d: SHAPES[s.marks % SHAPES.length] })] : [])));
      key.append(make("li", {}, sign, s.name));
    }
  fill(node, ...(key.children.length ? [key] : []), svg);
}

/** Draws numbers as an image, rows from the top. `shade` returns the strength of each number's ink; a box is outlined. */
function pictured(canvas, rows, shade, box = null) {
  const draw = () => {
    const [ink, paper, accent] = colours("accent", "surface", "ink");
    const [high, wide] = [rows.length, rows[0]?.length ?? 0];
    [canvas.width, canvas.height] = [wide, high];
    const context = canvas.getContext("2d");
    const image = context.createImageData(wide, high);
    rows.forEach((own, r) =>
      own.forEach((value, c) => {
        const much = shade(value);
        const edge = box && (c === box[0] || c === box[1] - 1);
        for (let i = 0; i < 3; i += 1) image.data[4 * (r * wide + c) + i] = edge ? accent[i] : paper[i] + (ink[i] - paper[i]) * much;
        image.data[4 * (r * wide + c) + 3] = 255;
      }),
    );
    context.putImageData(image, 0, 0);
  };
  canvas.replacing?.abort();
  canvas.replacing = new AbortController();
  canvas.addEventListener("dressed", draw, { signal: canvas.replacing.signal });
  draw();
}
