// The answer: the prompt as running text with a heat map, the predicted token, and what supports it.
const strip = $("prompt");
const spaced = !/\s/.test(about.texts.join("")); // the tokenizer drops the spaces between words
const pieces = tokens.map((token, t) => {
  const seen = /^\s+$/.test(token.raw) && !/⏎/.test(token.raw) ? "␣".repeat(token.raw.length) : token.raw;
  const node = make("span", { class: "tok", role: "button", tabindex: "-1", "data-cell": "", "data-tip": "" }, make("bdi", { dir: "auto", "data-word": token.token }, seen));
  strip.append(...(spaced && t ? [" "] : []), node);
  if (token.raw.includes("⏎")) strip.append(make("br"));
  return node;
});
strip.append(make("span", { class: "becomes", "aria-hidden": "true" }, " → "), make("span", { class: "predicted" }, word(predictions[0].token)));
strip.classList.toggle("long", columnsShown.length < T);
walked(strip, () => [pieces], (_, t) => go({ token: t }));
told(strip, (node) => {
  const t = pieces.indexOf(node);
  if (t < 0) return null;
  const { values, compared } = viewed();
  const lines = [make("strong", {}, `${t} `, word(tokens[t].token, false)), make("div", {}, `contributes ${signed(values[t])}`)];
  if (compared && effects && effects[t] !== null) lines.push(make("div", {}, `deleted: the logit loses ${signed(effects[t])}`));
  const own = written.get(String(t));
  if (own) lines.push(make("div", {}, "writes ", ...words(own.slice(0, 5).map((w) => w.word))));
  return lines;
});

drawings.push([["view", "versus", "under", "without"], () => {
  const { values } = viewed();
  const top = most(values);
  pieces.forEach((node, t) => {
    tinted(node, left(t) ? 0 : values[t], top);
    node.classList.toggle("left", left(t));
    node.setAttribute("aria-label", `${t}: ${tokens[t].token}, ${signed(values[t])}`);
  });
}]);
drawings.push([["token"], (before) => {
  pieces.forEach((node, t) => node.setAttribute("aria-pressed", String(t === state.token)));
  reached([pieces], pieces[state.token]);
  const frame = strip;
  const { offsetTop: top, offsetHeight: height } = pieces[state.token];
  if (frame.scrollHeight > frame.clientHeight && (top < frame.scrollTop || top + height > frame.scrollTop + frame.clientHeight)) frame.scrollTop = top - frame.clientHeight / 2;
}]);

// ------------------------------------------------------------------------------------------- the sentence, the badges

/** Nodes with commas between them, and a word before the last. */
const listed = (all, last = " and ") => all.flatMap((own, i) => (i ? [i === all.length - 1 ? last : ", ", ...own] : own));

function why() {
  const { sum, values, rest, compared } = viewed();
  const names = aim(sum.versus);
  const ranked = values.map((x, t) => [x, t]).filter(([x, t]) => x !== 0 && !left(t)).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  const strong = ranked.slice(0, 4).filter(([x]) => Math.abs(x) >= 0.1 * Math.abs(ranked[0][0]));
  const say = ([x, t]) => [word(tokens[t].token), ` (${signed(x)})`];
  const up = strong.filter(([x]) => x > 0).map(say);
  const down = strong.filter(([x]) => x < 0).map(say);
  const base = compared && about.baseline !== null ? `, measured from ${about.baseline}` : "";
  const found = ["The logit of ", ...names, ` is ${signed(sum.logit)}${base}. `];
  if (up.length) found.push(...listed(up), up.length > 1 ? " raise it" : " raises it", down.length ? ", " : ". ");
  if (down.length) found.push(...listed(down), down.length > 1 ? " lower it. " : " lowers it. ");
  if (!strong.length) found.push("No token contributes to it. ");
  const given = about.origin === "reference" && state.under === OWN ? "random tokens instead of the prompt's" : "constants";
  if (rest) found.push(`${given[0].toUpperCase()}${given.slice(1)} give ${signed(rest)}.`);
  return found;
}
drawings.push([["view", "versus", "under", "without"], () => fill($("why"), ...why())]);

function dependence() {
  const rows = agreement.filter((r) => r.convention !== OWN);
  if (!rows.length) return null;
  const signs = rows.map((r) => r.signs);
  const [low, high] = [Math.min(...signs), Math.max(...signs)];
  const range = low === high ? percent(low, 0) : `${(100 * low).toFixed(0)} to ${percent(high, 0)}`;
  return { firm: low >= 0.9, text: low >= 0.9 ? `Conventions agree with ${OWN} on ${range} of the signs` : `Depends on the convention: signs agree with ${OWN} for ${range} of the tokens` };
}

function badges() {
  const c = about.certificate;
  const found = [make("a", { class: "badge good", href: "#trust", "data-to": "trust" }, `Exact to ${error(c.reconstruction)}`)];
  const how = dependence();
  if (how) found.push(make("a", { class: `badge ${how.firm ? "good" : "warn"}`, href: "#trust", "data-to": "h-conventions" }, how.text));
  const own = agreement.find((r) => r.convention === state.under);
  if (own && !missing(own.deletion)) found.push(make("a", { class: `badge ${own.deletion >= 0.5 ? "good" : "warn"}`, href: "#trust", "data-to": "h-conventions" }, `Rank correlation with deletions ${fixed(own.deletion)}`));
  tokens.forEach((token, t) => {
    if (received[t]) found.push(make("span", { class: "badge" }, "Attention sink: ", word(token.token), ` receives ${percent(token.received, 0)}`));
  });
  return found;
}
drawings.push([["under"], () => fill($("badges"), ...badges())]);

function guesses() {
  const top = predictions[0].probability || 1;
  const bar = (p) => {
    const node = make("span", { class: "much", "aria-hidden": "true" });
    node.style.width = `${Math.max(1, (100 * p.probability) / top)}%`;
    return make("td", { class: "wide" }, node);
  };
  const behind = (p, i) => (i ? fixed(p.logit - predictions[0].logit) : "");
  fill($("predictions"), head(" next token", "probability", "logit", "behind", " "), body(predictions.slice(0, 10).map((p, i) => row(make("th", { scope: "row" }, word(p.token)), cell(percent(p.probability)), cell(fixed(p.logit, 2)), cell(behind(p, i)), bar(p)))));
  const second = predictions[1];
  const near = second ? [", before ", word(second.token), ` with ${percent(second.probability)}, ${fixed(predictions[0].logit - second.logit)} behind in logits`] : [];
  fill($("said"), word(predictions[0].token), ` is predicted with ${percent(predictions[0].probability)}`, ...near, ".");
}
guesses();
