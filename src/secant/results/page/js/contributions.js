// What each token contributes: a row for each token, with the other conventions and its deletion on one scale.
const TICKS = ["◆", "▲", "■", "●"];

$("versus").title = `${several(sums.length - 1, "token")} to compare with${host.live ? "" : ": the next predictions. secant serve and secant attribute --versus take any"}`;
fill($("versus"), ...sums.slice(1).map((s, i) => make("option", { value: String(i + 1) }, s.versus)));
if (sums.length < 2) for (const node of [$("versus").closest(".control"), root.querySelector('#views [data-value="versus"]')]) node.remove();
else
  $("versus").addEventListener("change", (event) => go({ view: "versus", versus: Number(event.target.value) }));
fill($("under"), ...[...conventions.keys()].map((label) => make("option", { value: label }, label)));
$("under").addEventListener("change", (event) => go({ view: "logit", under: event.target.value }));
if (sinks.some((s) => !s)) $("without").addEventListener("change", (event) => go({ without: event.target.checked ? "sinks" : usual.without ? "nothing" : "" }));
else $("without").closest(".control").remove();
switches($("views"), "view");

/** A bar from zero, a tick for each other convention, and a diamond for the deletion. */
function track(value, ticks, gone, scale) {
  const at = (x) => `${(100 * scale(x)).toFixed(2)}%`;
  const [from, to] = [scale(Math.min(0, value)), scale(Math.max(0, value))];
  const bar = make("span", { class: `bar ${value < 0 ? "minus" : "plus"}` });
  bar.style.left = `${(100 * from).toFixed(2)}%`;
  bar.style.width = `${(100 * (to - from)).toFixed(2)}%`;
  const zero = make("span", { class: "zero" });
  zero.style.left = at(0);
  const marks = ticks.map(([i, x]) => {
    const mark = make("span", { class: `tick t${i}` }, TICKS[i % TICKS.length]);
    mark.style.left = at(x);
    return mark;
  });
  if (!missing(gone)) {
    const mark = make("span", { class: "tick gone" }, "✕");
    mark.style.left = at(gone);
    marks.push(mark);
  }
  return make("td", { class: "track", "aria-hidden": "true" }, make("div", {}, zero, bar, ...marks));
}

const numbers = $("contributions");
let lines = [];

function drawContributions() {
  const { sum, values, rest, compared } = viewed();
  const label = state.view === "versus" ? null : state.under;
  const ticked = compared ? [...conventions.keys()].filter((other) => other !== label) : [];
  const rows = columnsShown.filter((t) => !left(t));
  const gone = compared && effects !== null;
  const pool = rows.flatMap((t) => [values[t], ...(gone ? [effects[t]] : []), ...(sinks[t] ? [] : ticked.map((other) => conventions.get(other)[t]))]);
  const [low, high] = [Math.min(0, ...pool), Math.max(0, ...pool)];
  const scale = (x) => (high > low ? Math.min(1, Math.max(0, (x - low) / (high - low))) : 0);
  const strong = largest(rows.map((t) => values[t]));
  lines = rows.map((t) => {
    const own = written.get(String(t)) ?? [];
    const z = own[0]?.z;
    const ticks = ticked.map((other, i) => [i, conventions.get(other)[t]]);
    const line = row(
      make("th", { scope: "row" }, make("span", { class: "at" }, `${t}`), word(tokens[t].token), received[t] ? make("span", { class: "flag", title: "attention sink" }, "sink") : ""),
      track(values[t], ticks, gone ? effects[t] : null, scale),
      cell(signed(values[t]), { class: `number${strong && Math.abs(values[t]) === strong ? " strong" : ""}` }),
      ...ticked.map((other) => cell(signed(conventions.get(other)[t]), { class: "number other" })),
      ...(gone ? [cell(signed(effects[t]), { class: "number gone" })] : []),
      make("td", { class: `says${!missing(z) && z < CHANCE ? " weak" : ""}` }, ...words(own.slice(0, 5).map((w) => w.word))),
      cell(fixed(z, 1), { class: `number${!missing(z) && z < CHANCE ? " weak" : ""}` }),
    );
    line.tabIndex = -1;
    line.dataset.cell = "";
    line.dataset.token = String(t);
    return line;
  });
  const few = values.map((_, t) => t).filter((t) => !rows.includes(t) && !left(t));
  const ending = [];
  const last = (name, x) => row(make("th", { scope: "row" }, name), make("td", { class: "track" }), cell(signed(x)), ...ticked.map(() => make("td", { class: "other" })), ...(gone ? [make("td", { class: "gone" })] : []), make("td", { class: "says" }), make("td"));
  const out = values.filter((_, t) => left(t));
  if (out.length) ending.push(last(`${out.length} left out`, total(out)));
  if (few.length) ending.push(last(several(few.length, "other token"), total(few.map((t) => values[t]))));
  ending.push(last(about.origin === "reference" && (label === null || label === OWN) ? "reference" : "constants", rest), last("logit", sum.logit));
  const spread = make("th", { scope: "col", class: "track" }, make("span", { class: "ends" }, make("span", {}, signed(low)), make("span", {}, signed(high))));
  const names = make("thead", {}, row(make("th", { scope: "col" }, "token"), spread, make("th", { scope: "col", class: "number" }, label ?? "contributes"), ...ticked.map((other) => make("th", { scope: "col", class: "number other" }, other)), ...(gone ? [make("th", { scope: "col", class: "number gone" }, "deleted")] : []), make("th", { scope: "col", class: "says" }, "writes (J x)"), make("th", { scope: "col", class: "number" }, "z")));
  fill(numbers, names, body(lines), make("tfoot", {}, ...ending));
  for (const button of $("views").querySelectorAll("[data-value]")) button.setAttribute("aria-pressed", String(button.dataset.value === state.view));
  if ($("versus")) $("versus").value = String(state.versus);
  $("under").value = state.under;
  if ($("without")) $("without").checked = state.without === "sinks";
  const legend = [make("span", { class: "sign" }, make("span", { class: "swatch plus" }), "raises"), make("span", { class: "sign" }, make("span", { class: "swatch minus" }), "lowers")];
  for (const [i, other] of ticked.entries()) legend.push(make("span", { class: `sign t${i}` }, TICKS[i % TICKS.length], ` under ${other}`));
  if (gone) legend.push(make("span", { class: "sign gone" }, "✕", " how much the model's own logit drops without the token"));
  fill($("scale"), ...legend);
  const off = Math.abs(sum.total - sum.logit);
  const which = state.view === "logit" && state.under !== OWN ? state.under : about.under;
  const from = about.origin === "reference" && state.under === OWN ? " Contributions are measured from random tokens after the prompt's first one, which therefore contributes 0." : about.origin === "zero" || about.origin === "reference" ? "" : ` Contributions are measured from ${about.measured}.`;
  const logit = ["Logit of ", ...aim(sum.versus), ` ${fixed(sum.logit, 4)}${about.baseline === null || sum.versus !== null ? "" : `, measured from ${about.baseline},`} = tokens ${fixed(total(values), 4)} + ${about.origin === "reference" && which === about.under ? "reference" : "constants"} ${fixed(rest, 4)}`];
  fill($("sum"), ...logit, which === about.under ? `, to ${error(off)}.` : ".", from, ` Convention: ${which}.`);
  markContribution();
}
function markContribution() {
  for (const line of lines) {
    const own = Number(line.dataset.token) === state.token;
    line.classList.toggle("current", own);
    line.setAttribute("aria-current", String(own));
    line.tabIndex = own ? 0 : -1;
  }
  if (lines.length && !lines.some((line) => line.tabIndex === 0)) lines[0].tabIndex = 0;
}
walked(numbers, () => lines.map((line) => [line]), (r) => go({ token: Number(lines[r].dataset.token) }));
drawings.push([["view", "versus", "under", "without"], drawContributions], [["token"], markContribution]);
