// The stages of a run: which are done, which are running, and which can be requested or cancelled.
const STAGE_OF = { lens: "lens", flow: "parts" }; // for sections that say themselves how to get their contents

/** A button that cancels a job, or requests a stage. */
function stageButton(job, ask) {
  if (["waiting", "running"].includes(job.state)) {
    const button = make("button", { type: "button", class: "link" }, "cancel");
    button.addEventListener("click", () => asked(`/api/jobs/${job.id}/cancel`, {}).catch(() => {}));
    return button;
  }
  if (job.state === "done") return "";
  const button = make("button", { type: "button", class: "link" }, missing(job.estimate) ? "compute" : `compute, about ${lasting(job.estimate)}`);
  button.addEventListener("click", () => ask(job.name));
  return button;
}

/** Lists the stages below a node. Only entries that change are rebuilt, so that the focus stays. */
function listed(list, stages, ask) {
  const there = new Map([...list.children].map((node) => [node.dataset.stage, node]));
  for (const { name, label, job } of stages) {
    const node = there.get(name) ?? list.appendChild(make("li", { "data-stage": name }, make("span", { class: "name" }, label), " ", make("span", { class: "does muted" }), " ", make("span", { class: "ask-for" })));
    if (!job) continue;
    node.dataset.state = job.state;
    const text = job.state === "failed" ? job.says : doing(job);
    const does = node.querySelector(".does");
    if (does.textContent !== text) does.textContent = text;
    const key = `${job.id} ${["waiting", "running"].includes(job.state) ? "cancel" : job.state} ${job.estimate}`;
    if (node.dataset.key === key) continue;
    node.dataset.key = key;
    fill(node.querySelector(".ask-for"), stageButton(job, ask));
  }
}

/** One line about the running stage, and about those that can still be requested. */
function summedUp(stages) {
  const own = stages.filter((stage) => stage.job);
  const running = own.find((stage) => stage.job.state === "running");
  if (running) return `Computing ${running.label}`;
  const waiting = own.filter((stage) => stage.job.state === "waiting").length;
  if (waiting) return `${several(waiting, "stage")} waiting`;
  const failed = own.filter((stage) => stage.job.state === "failed");
  if (failed.length) return `Not computed: ${failed.map((stage) => stage.label).join(", ")}`;
  const rest = own.filter((stage) => stage.job.state !== "done");
  return rest.length ? `Can be computed: ${rest.map((stage) => `${stage.label}${missing(stage.job.estimate) ? "" : ` (about ${lasting(stage.job.estimate)})`}`).join(", ")}` : "Everything is computed.";
}
