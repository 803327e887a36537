// Additional actions of a live page: ablate the selection, and compare with any token.
const kept = host.live?.kept ?? new Map(); // results of this run, by request
const partOf = (layer, part) => `layers.${layer}.${isHead(part) ? `attn.heads.${part.slice(1)}` : part}`;

function ablated() {
  const { token: t, layer, part } = state;
  return layer === null || part === "residual" ? { what: t, says: `token ${t}` } : { what: partOf(layer, part), says: `${partName(part)} of layer ${layer}` };
}

/** Both networks' answers to an ablation. */
function answers(found) {
  return [
    make("p", {}, "The logit of ", word(found.target), " changes by ", make("strong", {}, signed(found.frozen)), ` in the frozen network (${found.convention}), and by `, make("strong", {}, signed(found.real)), " in the model itself."),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Answers before and after" }, make("table", { id: "answers" }, head(" token", "before", "frozen", "model"), body(found.rows.map((r) => row(make("td", {}, word(r.token)), cell(percent(r.before_probability)), cell(percent(r.frozen_probability)), cell(percent(r.real_probability))))))),
  ];
}

if (host.live) {
  const by = make("select", { id: "ablate-by", "aria-label": "Replaced by" }, ...["zero", "mean", "token"].map((name) => make("option", { value: name }, name === "token" ? "another token" : name)));
  const other = make("input", { id: "ablate-token", "aria-label": "The other token", placeholder: "a token", size: "9", hidden: "", autocomplete: "off", spellcheck: "false", type: "text" });
  const everywhere = make("select", { id: "ablate-where", "aria-label": "Where" }, make("option", { value: "" }, "at all tokens"), make("option", { value: "here" }, "at this token"), make("option", { value: "last" }, "at the last token"));
  const start = make("button", { type: "button", id: "ablate" }, "Ablate");
  const box = make("div", { id: "ablation", role: "status" });
  $("facts").after(make("h3", { id: "ablate-what" }), make("div", { class: "controls" }, make("span", { class: "control" }, make("label", { for: "ablate-by" }, "by "), by, other), everywhere, start), box);

  const given = () => {
    const { what } = ablated();
    const token = typeof what === "number";
    const value = by.value === "token" && token ? other.value : by.value === "token" ? "zero" : by.value;
    return { what, by: value, position: token || !everywhere.value ? null : everywhere.value === "here" ? state.token : LAST };
  };
  const shown = () => {
    const { what, says } = ablated();
    const token = typeof what === "number";
    $("ablate-what").textContent = `Without ${says}`;
    by.options[2].disabled = !token;
    if (!token && by.value === "token") by.value = "zero";
    other.hidden = by.value !== "token";
    everywhere.hidden = token;
    const found = kept.get(`ablation ${JSON.stringify(given())}`);
    fill(box, ...(found ? (found.error ? [make("p", { class: "notice" }, found.error)] : found.rows ? answers(found) : [make("p", { class: "muted" }, found.says)]) : []));
  };
  start.addEventListener("click", async () => {
    const wanted = given();
    if (!wanted.by) return other.focus();
    const key = `ablation ${JSON.stringify(wanted)}`;
    const note = (found) => {
      kept.set(key, found);
      host.live.changed(); // the view may have been redrawn meanwhile
    };
    note({ says: "Ablating …" });
    try {
      note(await host.live.ask("ablation", wanted, (job) => job.state === "waiting" && note({ says: "Waiting for the current computation." })));
    } catch (error) {
      note({ error: error.message });
    }
  });
  for (const node of [by, everywhere]) node.addEventListener("change", shown);
  other.addEventListener("input", shown);
  other.addEventListener("keydown", (event) => event.key === "Enter" && start.click());
  host.live.shown(shown);
  drawings.push([["token", "layer", "part"], shown]);

}
if (host.live?.added) {
  const any = make("input", { id: "versus-any", "aria-label": "Versus another token", placeholder: "any token", size: "10", autocomplete: "off", spellcheck: "false", type: "text" });
  const failed = make("span", { id: "versus-failed", class: "muted", role: "status" });
  if (sums.length > 1) $("versus").after(any, failed);
  else $("views").after(make("span", { class: "control" }, make("label", { for: "versus-any" }, "versus"), any, failed));
  any.addEventListener("keydown", async (event) => {
    if (event.key !== "Enter" || !any.value) return;
    event.preventDefault();
    failed.textContent = "…";
    try {
      const { number: n } = await host.live.ask("versus", { token: any.value });
      await host.live.added("versus", { view: "versus", versus: String(n) });
    } catch (error) {
      failed.textContent = error.message;
    }
  });
}
if (host.live?.steering) {
  const made = (section, { forms, layers }) => {
    steering(section, forms, (given, note) => {
      note("Steering …");
      return host.live.ask("steering", given);
    }).of(layers);
    return section;
  };
  root.querySelector(".main > section").after(host.live.steering(made));
}
