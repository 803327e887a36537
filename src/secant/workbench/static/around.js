// What the page's modules for elements expect from their host, for the document outside the views.
const root = document;
const state = { theme: localStorage.getItem("theme") ?? "auto" };
const host = {
  signal: new AbortController().signal,
  link: () => location.href,
  dressed: (theme) => {
    document.documentElement.dataset.theme = theme;
    for (const own of document.querySelectorAll(".result")) for (const node of own.shadowRoot?.querySelectorAll("canvas") ?? []) node.dispatchEvent(new Event("dressed"));
  },
};
