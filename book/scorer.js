// How search ranks: chapters before pages about them, these before the API's names.
var Scorer = {
  score: (item) => item[4] + (item[0].startsWith("notebooks/") ? 200 : item[0].startsWith("book/api") ? -50 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
// A browser lets no page read another from disk: say how to get the extracts.
document.addEventListener("DOMContentLoaded", () => {
  const results = document.getElementById("search-results");
  if (!results || location.protocol !== "file:") return;
  const note = document.createElement("p");
  note.className = "search-note";
  note.textContent = "Read from disk, search shows titles only. For extracts of the pages, run " +
    "python -m http.server -d _build/html and open http://localhost:8000.";
  results.before(note);
});
