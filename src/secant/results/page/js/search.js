// Search: matches are marked and counted, next and previous move through them, and collapsed sections open.
let hits = [];
let hitAt = -1;
const plainText = (text) => text.replaceAll("·", " ").trim().toLowerCase();

function search() {
  for (const node of root.querySelectorAll(".hit, .at-hit")) node.classList.remove("hit", "at-hit");
  const wanted = plainText(state.find);
  if ($("find").value !== state.find) $("find").value = state.find;
  const found = (node) => node.dataset.word.split("\n").some((text) => plainText(text).includes(wanted));
  hits = wanted ? [...root.querySelectorAll(".main [data-word], #panel [data-word]")].filter(found) : [];
  for (const node of hits) node.classList.add("hit");
  hitAt = -1;
  counted();
}
function counted() {
  $("found").textContent = !plainText(state.find) ? "" : hitAt < 0 ? `${hits.length} found` : `${hitAt + 1} of ${hits.length}`;
  for (const id of ["find-next", "find-before"]) $(id).disabled = !hits.length;
}
function toHit(step) {
  if (!hits.length) return;
  hits[hitAt]?.classList.remove("at-hit");
  hitAt = hitAt < 0 ? (step > 0 ? 0 : hits.length - 1) : (hitAt + step + hits.length) % hits.length;
  const node = hits[hitAt];
  for (let fold = node.closest("details:not([open])"); fold; fold = fold.parentNode.closest("details:not([open])")) fold.open = true;
  node.classList.add("at-hit");
  node.scrollIntoView({ block: "center", inline: "center" });
  counted();
}
$("find").addEventListener("input", (event) => go({ find: event.target.value }, true));
$("find").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  toHit(event.shiftKey ? -1 : 1);
});
$("find-next").addEventListener("click", () => toHit(1));
$("find-before").addEventListener("click", () => toHit(-1));
drawings.push([["find", "token", "layer", "part", "cells", "map", "tint", "view", "versus", "under", "without"], search]);
