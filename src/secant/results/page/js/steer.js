// Steering: two continuations of the prompt next to each other, one with a concept mixed into the residual stream.

/** Connects a section's form. `ask(given, note)` returns both continuations, or null if a newer request replaced this
 *  one, and calls `note` with the progress. */
function steering(section, forms, ask) {
  const form = section.querySelector("form");
  const field = form.elements;
  const says = section.querySelector(".says");
  fill(field.form, ...forms.map((own) => make("option", { value: own.name }, own.name)));
  const bounds = () => {
    const own = forms.find((each) => each.name === field.form.value);
    [field.strength.min, field.strength.max] = [own.least, own.most];
    field.strength.value = own.grid[Math.floor(own.grid.length / 2)];
    told();
  };
  const told = () => {
    for (const name of ["layer", "strength"]) field[name].parentNode.querySelector("output").textContent = name === "layer" ? field.layer.value : number(Number(field.strength.value), 2);
  };
  let wanted = 0;
  async function steer() {
    if (!field.concept.value.trim()) return;
    const mine = (wanted += 1);
    const given = { concept: field.concept.value, layer: Number(field.layer.value), strength: Number(field.strength.value), form: field.form.value, tokens: Number(field.tokens.value) };
    says.textContent = "Steering …";
    try {
      const found = await ask(given, (text) => mine === wanted && (says.textContent = text));
      if (!found || mine !== wanted) return;
      const shown = (node, own) => fill(node, make("bdi", { dir: "auto" }, own.text), make("small", { class: "muted" }, ` perplexity ${number(own.perplexity, 3)}`));
      shown(section.querySelector(".plain"), found.unsteered);
      shown(section.querySelector(".steered"), found.steered);
      section.querySelector(".both").hidden = false;
      says.textContent = `${given.form}, after layer ${given.layer}, strength ${number(given.strength, 2)}. Both perplexities are the unsteered model's.`;
    } catch (error) {
      if (mine === wanted) says.textContent = error.message;
    }
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    steer();
  });
  form.addEventListener("input", told);
  field.form.addEventListener("change", bounds);
  form.addEventListener("change", steer);
  bounds();
  return {
    /** Sets the number of layers of the model. */
    of(layers) {
      section.hidden = !layers;
      field.layer.max = Math.max(0, layers - 1);
      if (!field.layer.dataset.set) field.layer.value = Math.floor(layers / 2);
      field.layer.dataset.set = "1";
      section.querySelector(".both").hidden = true;
      says.textContent = "";
      told();
    },
  };
}
