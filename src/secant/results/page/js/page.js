// A page that is a separate document: it contains the data, and the document's address stores its state.
view(document, JSON.parse(document.getElementById("data").textContent), {
  address: () => location.hash,
  go: (to, quietly) => (quietly ? location.replace(to) : (location.hash = to)),
  moved: (how) => addEventListener("hashchange", how),
  link: () => location.href,
  dressed: (theme) => (document.documentElement.dataset.theme = theme),
  signal: new AbortController().signal,
});
