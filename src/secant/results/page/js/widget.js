// A page in a notebook's cell: the widget holds its contents and selection, and requests go to the kernel.
const PLAIN = ["brand", "copy", "theme", "skip"]; // elements that a cell does not need

/** Whether the notebook is light or dark; the system's choice if the notebook does not say. */
function dressing() {
  const { jpThemeLight } = document.body.dataset;
  if (jpThemeLight) return jpThemeLight === "true" ? "light" : "dark";
  return document.body.classList.contains("vscode-dark") ? "dark" : document.body.classList.contains("vscode-light") ? "light" : "auto";
}

function render({ model, el }) {
  const node = document.createElement("div");
  el.append(node);
  const shadow = node.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(STYLE);
  shadow.adoptedStyleSheets.push(sheet);
  const waiting = new Map();
  const kept = new Map();
  let shown = [];
  let replaced = null;
  let moved = () => {};
  let steer = null; // the section that steers, with its settings, which is kept when the page is redrawn
  const answered = (message) => {
    const own = waiting.get(message.id);
    waiting.delete(message.id);
    if (message.error) own?.reject(new Error(message.error));
    else own?.resolve(message.result);
  };
  const ask = (kind, given) =>
    new Promise((resolve, reject) => {
      const id = crypto.randomUUID();
      waiting.set(id, { resolve, reject });
      model.send({ id, kind, given });
    });
  const draw = () => {
    replaced?.abort();
    replaced = new AbortController();
    shown = [];
    node.dataset.theme = dressing();
    shadow.replaceChildren(...new DOMParser().parseFromString(BODY, "text/html").body.childNodes); // from this package
    for (const name of PLAIN) (shadow.getElementById(name) ?? shadow.querySelector(`.${name}`))?.remove();
    for (const own of shadow.querySelectorAll("[role=banner], [role=main]")) own.removeAttribute("role");
    shadow.getElementById("panel").setAttribute("role", "group");
    view(shadow, model.get("contents"), {
      address: () => model.get("address"),
      go: (to) => {
        model.set("address", to);
        model.save_changes();
      },
      moved: (how) => (moved = how),
      link: () => location.href,
      signal: replaced.signal,
      live: {
        kept,
        ask,
        shown: (how) => shown.push(how),
        changed: () => shown.forEach((how) => how()),
        added: (name, change) => {
          const said = new URLSearchParams(model.get("address").slice(1));
          for (const [key, value] of Object.entries(change)) said.set(key, value);
          model.set("address", `#${said}`);
          model.save_changes();
        },
        steering: (how) => (steer ??= how(new DOMParser().parseFromString(STEERING, "text/html").body.firstChild, model.get("choices"))),
      },
    });
  };
  const going = () => moved();
  model.on("msg:custom", answered);
  model.on("change:contents", draw);
  model.on("change:address", going);
  draw();
  return () => {
    replaced.abort();
    model.off("msg:custom", answered);
    model.off("change:contents", draw);
    model.off("change:address", going);
  };
}
export default { render };
