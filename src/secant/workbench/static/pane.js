// A pane: a form, the run that it requests, and the run's view.

function pane(label, choices, moved) {
  const node = make("section", { class: "pane", "aria-label": label });
  node.append($("pane").content.cloneNode(true));
  const find = (name) => node.querySelector(name);
  const form = find("form.ask");
  const field = form.elements;
  const shadow = find(".result").attachShadow({ mode: "open" });
  sheet.then((own) => shadow.adoptedStyleSheets.push(own));
  let run = null; // the run's id
  let settings = null; // the request
  let stages = []; // each with its name, label and job
  let contents = null;
  let fragment = "";
  let live = null;
  let kept = new Map();
  const listeners = [];

  fill(field.model, ...choices.models.map((own) => make("option", { value: own.name }, own.label)));
  fill(field.convention, make("option", { value: "" }, "secant's default"), ...choices.conventions.map((name) => make("option", { value: name }, name)));
  fill(field.baseline, ...Object.entries(choices.baselines).map(([name, says]) => make("option", { value: name }, says)));
  field.prompt.maxLength = choices.characters;
  const chats = () => (find(".chat").hidden = !choices.models.find((own) => own.name === field.model.value)?.chat);
  field.model.addEventListener("change", chats);
  let steered = null; // the job of the latest request
  const steer = steering(find(".steer"), choices.forms, async (given, note) => {
    if (!run) return null;
    if (steered) asked(`/api/jobs/${steered}/cancel`, {}).catch(() => {}); // nobody waits for it now
    const job = await asked(`/api/runs/${run}/steering`, given);
    steered = job.id;
    return resultOf(job, (own) => !OVER.includes(own.state) && note(own.state === "waiting" ? "Waiting for the current computation." : "Steering …"));
  });

  function failed(text) {
    find(".failed").textContent = text;
    find(".failed").hidden = !text;
  }
  async function ask(name) {
    try {
      const job = await asked(`/api/runs/${run}/stage`, { name });
      if (!jobs.has(job.id)) noted(job); // else events have overtaken the response
    } catch (error) {
      failed(error.message);
    }
  }

  /** Shows the progress, also in sections that are not computed yet. */
  function progressed() {
    listed(find(".stages"), stages, ask);
    const now = summedUp(stages);
    if (find(".now").textContent !== now) find(".now").textContent = now;
    const running = stages.find((own) => own.job?.state === "running");
    find(".left").textContent = running ? doing(running.job) : "";
    for (const box of shadow.querySelectorAll("[data-stage]")) placed(box);
  }
  function placed(box) {
    const stage = stages.find((own) => own.name === box.dataset.stage);
    if (stage?.job) fill(box, make("p", { class: "muted" }, stage.job.state === "failed" ? `${stage.job.says} ` : `${stage.job.state === "offered" ? "It takes a while" : doing(stage.job)} `, stageButton(stage.job, ask)));
  }

  const around = {
    address: () => fragment,
    go: (to, quietly) => {
      fragment = to;
      moved(quietly);
    },
    moved: (how) => (listeners[0] = how),
    link: () => location.href,
    absent: (own) => {
      const stage = stages.find((each) => each.name === STAGE_OF[own.dataset.of.split(" ")[0]]);
      if (!stage || own.tagName !== "SECTION" || stage.job?.state === "done") return own.remove();
      const box = make("div", { "data-stage": stage.name, role: "status" });
      fill(own, own.querySelector("h2"), box);
      placed(box);
    },
  };
  function drawn() {
    if (!contents?.tables.predictions) return;
    const own = run;
    live = [];
    find(".result").removeAttribute("aria-busy");
    mounted(shadow, contents, {
      ...around,
      live: {
        kept,
        ask: async (kind, given, progress) => resultOf(await asked(`/api/runs/${own}/${kind}`, given), progress),
        shown: (how) => live.push(how),
        changed: () => own === run && live.forEach((how) => how()),
        added: async (name, change) => {
          if (own !== run) return;
          const said = new URLSearchParams(fragment.slice(1));
          for (const [key, value] of Object.entries(change)) said.set(key, value);
          fragment = `#${said}`;
          moved(false);
          await fetched(name);
        },
      },
    });
  }

  /** Takes the contents of some stages, and draws everything that has arrived since the last drawing. */
  let due = null;
  async function fetched(...names) {
    const own = run;
    const parts = await Promise.all(names.map((name) => asked(`/api/runs/${own}/parts/${name}`)));
    if (own !== run) return;
    for (const part of parts) for (const of of ["about", "tables", "described"]) Object.assign(contents[of], part[of]);
    clearTimeout(due);
    if (names.includes("answer")) drawn();
    else await new Promise((resolve) => (due = setTimeout(() => (drawn(), resolve()), 120)));
  }

  const ticking = setInterval(() => (node.isConnected ? find(".left").textContent && progressed() : clearInterval(ticking)), 1000);
  /** Shows the state of a stage's job. Returns whether its contents are to be fetched. */
  function took(job) {
    if (job.run !== run || job.kind !== "stage") return false;
    const stage = stages.find((own) => own.name === job.name);
    if (!stage || (stage.job && stage.job.id > job.id)) return false;
    const before = stage.job?.id === job.id ? stage.job.state : null;
    stage.job = job;
    progressed();
    if (job.name === "answer" && ["failed", "cancelled"].includes(job.state)) {
      failed(job.state === "failed" ? job.says : "Cancelled.");
      find(".result").removeAttribute("aria-busy");
    }
    return job.state === "done" && before !== "done";
  }
  watching.add((job) => {
    if (took(job)) fetched(job.name).then(() => job.name === "answer" && answered()).catch((error) => failed(error.message));
  });
  async function answered() {
    const found = await asked(`/api/runs/${run}`);
    steer.of(found.layers);
  }

  /** Requests an explanation, and shows its stages as they arrive. */
  async function open(given, to = "") {
    const same = settings !== null && JSON.stringify(settings) === JSON.stringify(given);
    fragment = to;
    filled(given);
    if (same && contents?.tables.predictions) {
      listeners[0]?.();
      return;
    }
    failed("");
    settings = given;
    find(".now").textContent = "Asking …";
    find(".result").setAttribute("aria-busy", "true");
    try {
      const found = await asked("/api/explain", given);
      if (settings !== given) return;
      [run, contents, kept] = [found.run, { about: {}, tables: {}, described: {} }, new Map()];
      fill(find(".stages"));
      for (const job of found.jobs) if (!jobs.has(job.id)) jobs.set(job.id, { ...job, at: performance.now() });
      stages = found.stages.map((own) => ({ ...own, job: null }));
      const there = found.jobs.map((job) => jobs.get(job.id)).filter(took).map((job) => job.name); // events can overtake the response
      progressed();
      if (there.length) await fetched(...there);
      if (there.includes("answer")) await answered();
    } catch (error) {
      if (settings !== given) return;
      settings = null;
      find(".result").removeAttribute("aria-busy");
      find(".now").textContent = "";
      failed(error.message);
    }
  }
  function filled(given) {
    for (const [name, value] of Object.entries(given)) if (field[name]) name === "chat" ? (field.chat.checked = value) : (field[name].value = value ?? "");
    chats();
  }
  const asking = () => ({ model: field.model.value, prompt: field.prompt.value, target: field.target.value || null, convention: field.convention.value || null, baseline: field.baseline.value, chat: field.chat.checked && !find(".chat").hidden });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.prompt.value) return;
    open(asking());
    moved(false);
  });
  field.prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });

  find(".export").addEventListener("click", async () => {
    const button = find(".export");
    if (!run) return;
    button.disabled = true;
    try {
      const job = await asked(`/api/runs/${run}/page`, {});
      await resultOf(job, (own) => (button.textContent = own.state === "running" ? `Saving: ${doing(own)}` : "Saving: waits"));
      make("a", { href: `/api/jobs/${job.id}/report.html`, download: "report.html" }).click();
    } catch (error) {
      failed(error.message);
    }
    button.disabled = false;
    button.textContent = "Save this page";
  });
  chats();
  return { node, open, asking, filled, settings: () => settings, fragment: () => fragment, focus: () => field.prompt.focus() };
}
