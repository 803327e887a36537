// The selection and the view's settings, stored in the address, so that links restore them and browser buttons work.
const usual = {
  token: sums[0].tokens.reduce((best, x, t, all) => (Math.abs(x) > Math.abs(all[best]) ? t : best), 0),
  layer: null, part: "residual", view: "logit", versus: 1, under: OWN, without: about.left_out.length ? "sinks" : "", cells: lens.length ? "terms" : "direction", tint: "terms", map: 0, paths: "direct", find: "", theme: "auto",
}; // prettier-ignore
let state = { ...usual };
const drawings = []; // functions that redraw a part, with the names of the state that they depend on

function choice(text, least, most, otherwise) {
  return text !== null && /^\d+$/.test(text) && Number(text) >= least && Number(text) <= most ? Number(text) : otherwise;
}
const CELLS = [
  ...(lens.length ? ["terms"] : []),
  ...(depthWords.size ? ["written"] : []),
  ...(depths ? ["direction"] : []),
  ...(lens.length ? ["lens"] : []),
];
const TINTS = lens.length ? ["terms", "target", "top"] : [];

function read() {
  const said = new URLSearchParams(host.address().slice(1));
  const among = (name, all) => (all.includes(said.get(name)) ? said.get(name) : usual[name]);
  const layer = choice(said.get("layer"), 0, Number.MAX_SAFE_INTEGER, null);
  const known = LAYERS.includes(layer) ? layer : null;
  return {
    token: choice(said.get("token"), 0, LAST, usual.token),
    layer: known,
    part: known !== null && parts.has(`${known} ${said.get("part")}`) ? said.get("part") : usual.part,
    view: among("view", sums.length > 1 ? ["logit", "versus"] : ["logit"]),
    versus: choice(said.get("versus"), 1, sums.length - 1, usual.versus),
    under: among("under", [...conventions.keys()]),
    without: among("without", ["sinks", "nothing"].slice(0, sinks.some((s) => !s) ? 2 : 0)),
    cells: among("cells", CELLS),
    tint: among("tint", TINTS),
    map: choice(said.get("map"), 0, (depths?.maps.length ?? 1) - 1, usual.map),
    paths: among("paths", ["direct", "all"]),
    find: said.get("find") || "",
    theme: among("theme", ["light", "dark"]),
  };
}
function address() {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (name === "token" || value !== usual[name]) said.set(name, value);
  return "#" + said;
}
function draw(before) {
  const changed = before === null ? null : new Set(Object.keys(state).filter((name) => before[name] !== state[name]));
  for (const [names, how] of drawings) if (changed === null || names.some((name) => changed.has(name))) how(before);
}
function go(change, quietly = false) {
  const before = state;
  state = { ...state, ...change };
  if (state.layer === null || !(state.part === "residual" || parts.has(`${state.layer} ${state.part}`))) state.part = "residual";
  draw(before);
  if (host.address() !== address()) host.go(address(), quietly);
}
host.moved(() => {
  const before = state;
  state = read();
  if (JSON.stringify(before) !== JSON.stringify(state)) draw(before);
});

/** A group of buttons of which one is pressed; each has its value in `data-value`. */
function switches(node, name, change = (value) => ({ [name]: value })) {
  if (!node) return;
  node.addEventListener("click", (event) => {
    const value = event.target.closest("[data-value]")?.dataset.value;
    if (value !== undefined) go(change(value));
  });
  drawings.push([[name], () => {
    for (const button of node.querySelectorAll("[data-value]")) button.setAttribute("aria-pressed", String(button.dataset.value === state[name]));
  }]);
}

// ------------------------------------------------------------------------------------------- contributions in the current view

/** What each token contributes in the current view, the sum, and whether conventions and deletion are shown with it. */
function viewed() {
  const sum = state.view === "versus" ? sums[state.versus] : sums[0];
  const own = state.view === "versus" || state.under === OWN;
  const values = own ? sum.tokens : conventions.get(state.under);
  return { sum, values, rest: own ? sum.constant : sum.logit - total(values), compared: state.view === "logit" };
}
const left = (t) => state.without === "sinks" && sinks[t];
const most = (values) => largest(values.filter((_, t) => !left(t))) || 1;
