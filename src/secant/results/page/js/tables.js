// What a page is made of: `about`, what is said of the whole; `tables`, each as its columns; and what these mean.
const { about, tables, described } = contents;

// What needs a table that is not there goes; a page that is live says instead how it can be had.
for (const node of root.querySelectorAll("[data-of]")) if (!node.dataset.of.split(" ").some((name) => tables[name])) (host.absent ?? ((own) => own.remove()))(node);

/** The columns of a table by name, each a list of values. */
function columns(name) {
  const unpacked = (own) => (own.times ? own.values.flatMap((value, i) => Array(own.times[i]).fill(value)) : own);
  const values = (own) => (own.texts ? unpacked(own.codes).map((code) => (code === null ? null : own.texts[code])) : unpacked(own));
  return Object.entries(tables[name] ?? {}).map(([key, own]) => [key, values(own)]);
}

/** The rows of a table, each as an object; none of one that is not there. */
function records(name) {
  const all = columns(name);
  return (all[0]?.[1] ?? []).map((_, i) => Object.fromEntries(all.map(([key, values]) => [key, values[i]])));
}

/** Rows by the values of some columns, which a space joins. */
function grouped(rows, ...keys) {
  const found = new Map();
  for (const own of rows) {
    const key = keys.map((name) => own[name]).join(" ");
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(own);
  }
  return found;
}
