// The workbench: one pane or two, stored in the address, so that links restore them and the browser's buttons work.
const EXAMPLE = "The bridge out of Marin is the";
const NAMES = ["a", "b"];
let panes = [];
let choices = null;

/** The address of the requests and selections. The part of an address after # never leaves the browser. */
function address() {
  const said = new URLSearchParams();
  for (const [i, own] of panes.entries()) {
    if (!own.settings()) continue;
    said.set(NAMES[i], JSON.stringify(own.settings()));
    if (own.fragment().length > 1) said.set(`${NAMES[i]}.view`, own.fragment().slice(1));
  }
  return `#${said}`;
}
function moved(quietly) {
  if (location.hash === address()) return;
  if (quietly) history.replaceState(null, "", address());
  else history.pushState(null, "", address());
}

/** The requests in an address; null if it is not valid. */
function asking(said, name) {
  try {
    const given = JSON.parse(said.get(name));
    const own = { model: given.model, prompt: given.prompt, target: given.target ?? null, convention: given.convention ?? null, baseline: given.baseline ?? "vocabulary", chat: Boolean(given.chat) };
    if (typeof own.prompt !== "string" || !own.prompt) return null;
    return choices.models.some((model) => model.name === own.model) ? own : { ...own, model: choices.models[0].name };
  } catch {
    return null;
  }
}
function shown() {
  const said = new URLSearchParams(location.hash.slice(1));
  const wanted = NAMES.map((name) => [asking(said, name), `#${said.get(`${name}.view`) ?? ""}`]);
  arranged(wanted[1][0] ? 2 : 1);
  if (!wanted[0][0]) return false;
  for (const [i, own] of panes.entries()) if (wanted[i][0]) own.open(...wanted[i]);
  return true;
}

/** Shows one pane or two. */
function arranged(count) {
  while (panes.length > count) panes.pop().node.remove();
  while (panes.length < count) {
    const own = pane(panes.length ? "Second run" : "Run", choices, moved);
    panes.push(own);
    $("panes").append(own.node);
  }
  $("panes").classList.toggle("two-runs", count === 2);
  $("double").setAttribute("aria-pressed", String(count === 2));
}
$("double").addEventListener("click", () => {
  const two = panes.length === 1;
  arranged(two ? 2 : 1);
  if (two) {
    panes[1].filled(panes[0].settings() ?? panes[0].asking());
    panes[1].focus();
  }
  moved(false);
});

// ------------------------------------------------------------------------------------------- history

$("history").addEventListener("toggle", async () => {
  if (!$("history").open) return;
  const list = $("history").querySelector("ul");
  try {
    const runs = await asked("/api/runs");
    fill(list, ...runs.map(({ asked: given }) => {
      const button = make("button", { type: "button", class: "link" }, make("bdi", { dir: "auto" }, brief(given.prompt.replaceAll("\n", "⏎"), 60)), make("small", { class: "muted" }, ` ${[given.model, given.target, given.convention].filter(Boolean).join(", ")}`));
      button.addEventListener("click", () => {
        $("history").open = false;
        panes.at(-1).open(given);
        moved(false);
      });
      return make("li", {}, button);
    }));
    if (!runs.length) fill(list, make("li", { class: "muted" }, "No runs yet"));
  } catch (error) {
    fill(list, make("li", {}, error.message));
  }
});

// ------------------------------------------------------------------------------------------- start

$("theme").addEventListener("change", (event) => {
  state.theme = event.target.value;
  localStorage.setItem("theme", state.theme);
  dressed(state.theme);
});
$("copy").addEventListener("click", () => copied($("copy")));
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  panes[0]?.focus();
});
addEventListener("popstate", shown);
addEventListener("hashchange", shown);
menus();
dressed(["light", "dark"].includes(state.theme) ? state.theme : "auto");
asked("/api/choices").then((found) => {
  choices = found;
  if (shown()) return;
  panes[0].open({ model: choices.models[0].name, prompt: EXAMPLE, target: null, convention: null, baseline: "vocabulary", chat: false });
  moved(true);
}, () => {});
