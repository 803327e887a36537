// The server: requests, and the events that report every job.
const jobs = new Map(); // the latest state of every job, by its number
const watching = new Set(); // called with each job that changes

/** The server's answer to a request. An error has the server's one line. */
async function asked(path, body) {
  const how = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, how);
  } catch {
    $("lost").hidden = false;
    throw new Error("The workbench is not responding.");
  }
  if (answer.status === 403) $("lost").hidden = false;
  const found = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(found?.error ?? `The workbench answered ${answer.status}.`);
  return found;
}

function noted(job) {
  job.at = performance.now();
  jobs.set(job.id, job);
  for (const watch of [...watching]) watch(job);
}
const OVER = ["done", "failed", "cancelled"];

/** The result of a job when it is done. An error says why there is none. */
async function resultOf(job, progress = () => {}) {
  const ended = await new Promise((resolve) => {
    const watch = (own) => {
      if (own.id !== job.id) return;
      progress(own);
      if (!OVER.includes(own.state)) return;
      watching.delete(watch);
      resolve(own);
    };
    watching.add(watch);
    watch(jobs.get(job.id) ?? job);
  });
  if (ended.state === "cancelled") throw new Error("Cancelled.");
  if (ended.state === "failed") throw new Error(ended.says);
  return (await asked(`/api/jobs/${job.id}`)).result;
}

const events = new EventSource("/api/events");
events.addEventListener("jobs", (event) => {
  $("lost").hidden = true;
  for (const job of JSON.parse(event.data)) noted(job);
});
events.addEventListener("job", (event) => noted(JSON.parse(event.data)));
events.addEventListener("error", () => ($("lost").hidden = false));

/** Seconds, for people. */
const lasting = (seconds) => (seconds < 1 ? "under 1 s" : seconds < 120 ? `${seconds.toFixed(0)} s` : `${(seconds / 60).toFixed(0)} min`);

/** What a job does, and its remaining time. */
function doing(job) {
  if (job.state === "waiting") return "waits";
  if (job.state === "done") return missing(job.seconds) ? "done" : `${job.seconds.toFixed(1)} s`;
  if (job.state !== "running") return job.state === "offered" ? "not computed" : job.state;
  const counted = job.of ? `${job.says} ${job.done} of ${job.of}` : "running";
  const seconds = job.seconds + (performance.now() - job.at) / 1000;
  const rest = job.of && job.done ? (seconds / job.done) * (job.of - job.done) : missing(job.estimate) ? null : Math.max(0, job.estimate - seconds);
  const left = rest === null || rest < 1 ? "" : `, about ${lasting(rest)} left`;
  return counted + left;
}
