// The contents of a page: `about`, facts about the whole; `tables`, each as its columns; `described`, their meanings.
const { about, tables, described } = contents;

// Elements that require an absent table are removed; a live page says instead how to get it.
for (const node of root.querySelectorAll("[data-of]")) if (!node.dataset.of.split(" ").some((name) => tables[name])) (host.absent ?? ((own) => own.remove()))(node);

/** The columns of a table by name, each a list of values. */
function columns(name) {
  const unpacked = (own) => (own.times ? own.values.flatMap((value, i) => Array(own.times[i]).fill(value)) : own);
  const values = (own) => (own.texts ? unpacked(own.codes).map((code) => (code === null ? null : own.texts[code])) : unpacked(own));
  return Object.entries(tables[name] ?? {}).map(([key, own]) => [key, values(own)]);
}

/** The rows of a table, each as an object; none if the table is absent. */
function records(name) {
  const all = columns(name);
  return (all[0]?.[1] ?? []).map((_, i) => Object.fromEntries(all.map(([key, values]) => [key, values[i]])));
}

/** Rows by the values of some columns, joined by spaces. */
function grouped(rows, ...keys) {
  const found = new Map();
  for (const own of rows) {
    const key = keys.map((name) => own[name]).join(" ");
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(own);
  }
  return found;
}
