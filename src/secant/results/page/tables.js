"use strict";
// What a page is made of: `about`, what is said of the whole, and `tables`. Each page's own script comes after this.
const { about, tables } = JSON.parse(document.getElementById("data").textContent);

/** The rows of a table, each as an object; none of one that is not there. */
function records(name) {
  const unpacked = (own) => (own.times ? own.values.flatMap((value, i) => Array(own.times[i]).fill(value)) : own);
  const columns = Object.entries(tables[name] ?? {}).map(([key, own]) => [key, own.texts ? unpacked(own.codes).map((code) => (code === null ? null : own.texts[code])) : unpacked(own)]);
  return (columns[0]?.[1] ?? []).map((_, i) => Object.fromEntries(columns.map(([key, values]) => [key, values[i]])));
}
