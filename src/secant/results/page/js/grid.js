// Tables in which arrow keys move, and notes on the cell under the pointer or with the focus.

/** Makes arrow keys, Home and End move through the cells of a table, Enter and Space select, and the Tab key reach one
 *  cell. `cells()` returns the cells as rows; `chosen(row, column)` is called for a selection. */
function walked(table, cells, chosen) {
  const place = (node) => {
    const all = cells();
    const r = all.findIndex((own) => own.includes(node));
    return r < 0 ? null : [r, all[r].indexOf(node), all];
  };
  const owner = (event) => event.target.closest("[data-cell]");
  table.addEventListener("click", (event) => {
    const at = owner(event) && place(owner(event));
    if (at) chosen(at[0], at[1]);
  });
  table.addEventListener("keydown", (event) => {
    const at = owner(event) && place(owner(event));
    if (!at) return;
    const [r, c, all] = at;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      chosen(r, c);
      return;
    }
    const to = { ArrowRight: [r, c + 1], ArrowLeft: [r, c - 1], ArrowDown: [r + 1, c], ArrowUp: [r - 1, c], Home: [r, 0], End: [r, all[r].length - 1] }[event.key];
    if (!to) return;
    event.preventDefault();
    const next = all[to[0]]?.[to[1]];
    if (!next) return;
    reached(all, next);
    next.focus();
  });
}

/** Sets which cell the Tab key reaches. */
function reached(cells, node) {
  for (const own of cells) for (const other of own) other.tabIndex = other === node ? 0 : -1;
}

/** Colours a node by a value, relative to the largest: one colour for values that raise, another for those that lower. */
function tinted(node, value, most) {
  const much = missing(value) || !most ? 0 : Math.min(1, Math.abs(value) / most);
  node.classList.toggle("plus", !missing(value) && value > 0);
  node.classList.toggle("minus", !missing(value) && value < 0);
  node.style.setProperty("--much", much.toFixed(3));
}

const tip = make("div", { id: "tip", role: "tooltip", hidden: "" });
ground.append(tip);

/** Shows a note on the table cell under the pointer or with the focus, next to it; Escape hides it. */
function told(table, said) {
  const hide = () => (tip.hidden = true);
  const show = (event) => {
    const node = event.target.closest("[data-tip]");
    const content = node && said(node);
    if (!content) return hide();
    fill(tip, ...content);
    tip.hidden = false;
    const { left, bottom, top } = node.getBoundingClientRect();
    const { offsetWidth: w, offsetHeight: h } = tip;
    tip.style.left = `${Math.max(4, Math.min(left, document.documentElement.clientWidth - w - 8))}px`;
    tip.style.top = `${bottom + h + 8 > innerHeight && top > h + 8 ? top - h - 6 : bottom + 6}px`;
  };
  table.addEventListener("pointerover", (event) => event.pointerType !== "touch" && show(event));
  table.addEventListener("pointerleave", hide);
  table.addEventListener("focusin", show);
  table.addEventListener("focusout", hide);
}
document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true), { signal });
addEventListener("scroll", () => (tip.hidden = true), { passive: true, capture: true, signal });
