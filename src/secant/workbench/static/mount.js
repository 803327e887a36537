// A view in a shadow root: the page's own modules redraw it whenever there is more to show. Open sections, the scroll
// position and the focus are restored.
const sheet = fetch("/style/page.css").then((answer) => answer.text()).then((text) => new CSSStyleSheet().replace(text));
const OUTSIDE = [".skip", ".brand", "#copy", "#theme"]; // elements that the workbench has outside the views
const titled = (fold) => fold.querySelector("summary")?.textContent;

/** The focus: an element with an id, or a cell of one. */
function focusOf(shadow) {
  const node = shadow.activeElement;
  if (!node) return null;
  const within = node.closest("[id]");
  return { id: within?.id, cell: node === within ? null : [...(within?.querySelectorAll("[data-cell]") ?? [])].indexOf(node), value: node.value, at: node.selectionStart };
}
function remembered(shadow) {
  const there = [...shadow.querySelectorAll("section")].find((own) => own.getBoundingClientRect().bottom > 60);
  return {
    focus: focusOf(shadow),
    open: [...shadow.querySelectorAll("details[open]")].map(titled),
    sheet: shadow.getElementById("panel")?.classList.contains("open"),
    scrolled: [...shadow.querySelectorAll(".scroll[aria-label], #panel-body, #prompt")].filter((own) => own.scrollTop || own.scrollLeft).map((own) => [own.id, own.getAttribute("aria-label"), own.scrollTop, own.scrollLeft]),
    place: there?.id && scrollY > 0 ? [there.id, there.getBoundingClientRect().top] : null,
  };
}
function restored(shadow, was) {
  for (const fold of shadow.querySelectorAll("details")) if (was.open.includes(titled(fold))) fold.open = true;
  if (was.sheet) shadow.getElementById("sheet").click();
  for (const [id, label, top, left] of was.scrolled) {
    const node = id ? shadow.getElementById(id) : [...shadow.querySelectorAll(".scroll")].find((own) => own.getAttribute("aria-label") === label);
    if (node) [node.scrollTop, node.scrollLeft] = [top, left];
  }
  if (was.place) {
    const node = shadow.getElementById(was.place[0]);
    if (node) scrollBy(0, node.getBoundingClientRect().top - was.place[1]);
  }
  if (!was.focus?.id) return;
  const within = shadow.getElementById(was.focus.id);
  const node = was.focus.cell === null ? within : within?.querySelectorAll("[data-cell]")[was.focus.cell];
  if (was.focus.value !== undefined && node?.type !== "button" && "value" in (node ?? {})) node.value = was.focus.value;
  node?.focus({ preventScroll: true });
  if (!missing(was.focus.at) && node?.setSelectionRange && node.type === "text") node.setSelectionRange(was.focus.at, was.focus.at);
}

/** Draws contents in a shadow root, instead of its former ones. */
function mounted(shadow, contents, around) {
  const was = remembered(shadow);
  shadow.replaced?.abort();
  shadow.replaced = new AbortController();
  shadow.replaceChildren($("view").content.cloneNode(true));
  for (const name of OUTSIDE) shadow.querySelector(name)?.remove();
  for (const node of shadow.querySelectorAll("[role=banner], [role=main], [role=search]")) node.removeAttribute("role"); // the document has these roles already
  // two runs side by side have the same sections, which would be landmarks with equal names
  for (const node of shadow.querySelectorAll("#panel, [role=region]")) node.setAttribute("role", "group");
  for (const node of shadow.querySelectorAll("section")) node.removeAttribute("aria-labelledby");
  view(shadow, contents, { ...around, signal: shadow.replaced.signal });
  restored(shadow, was);
}
