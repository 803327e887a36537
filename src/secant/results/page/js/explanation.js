// Starts the page of an explanation.
const headings = { model: about.model, "operators-under": about.certificate.convention, "chance-z": String(CHANCE) };
for (const [id, text] of Object.entries(headings)) $(id).textContent = text;
drawings.push([["theme"], () => dressed(state.theme)]);
$("theme")?.addEventListener("change", (event) => go({ theme: event.target.value }));
$("copy")?.addEventListener("click", () => copied($("copy")));
offered($("files"));

// links inside the page do not change the address, which stores the state
root.addEventListener("click", (event) => {
  const link = event.target.closest?.("[data-to]");
  if (!link) return;
  event.preventDefault();
  const to = $(link.dataset.to);
  for (let fold = to.closest("details:not([open])"); fold; fold = fold.parentNode.closest("details:not([open])")) fold.open = true;
  to.scrollIntoView();
  to.focus({ preventScroll: true });
});
menus();
state = read();
draw(null);
