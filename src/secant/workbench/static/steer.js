// Steering: two continuations of the prompt next to each other, one with a concept mixed into the residual stream.

/** Lets the form of a pane steer its run. `run()` gives the run's id. */
function steering(section, forms, run) {
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
  let latest = null; // the job of what was wanted last
  async function steer() {
    if (!field.concept.value.trim() || !run()) return;
    const mine = (wanted += 1);
    const given = { concept: field.concept.value, layer: Number(field.layer.value), strength: Number(field.strength.value), form: field.form.value, tokens: Number(field.tokens.value) };
    says.textContent = "Steering …";
    try {
      if (latest) asked(`/api/jobs/${latest}/cancel`, {}).catch(() => {}); // nobody waits for it any more
      const job = await asked(`/api/runs/${run()}/steering`, given);
      latest = job.id;
      const found = await resultOf(job, (own) => mine === wanted && !OVER.includes(own.state) && (says.textContent = own.state === "waiting" ? "Waits for what is computed now." : "Steering …"));
      if (mine !== wanted) return;
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
    /** For a model of so many layers. */
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
