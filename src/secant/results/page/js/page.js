// A page that is a document of its own: its contents stand in it, and its state is the document's address.
view(document, JSON.parse(document.getElementById("data").textContent), {
  address: () => location.hash,
  go: (to, quietly) => (quietly ? location.replace(to) : (location.hash = to)),
  moved: (how) => addEventListener("hashchange", how),
  link: () => location.href,
  dressed: (theme) => (document.documentElement.dataset.theme = theme),
  signal: new AbortController().signal,
});
