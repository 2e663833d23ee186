// Filters of the scoreboard, and a click on a cell opens its claim. Without it all is shown.
const form = document.querySelector("form.filters");
const rows = [...document.querySelectorAll("[data-outcome]")];
const fits = (row) => [...new FormData(form)].every(([name, wanted]) => !wanted ||
  row.dataset[name] === wanted || (wanted === "ours" && row.dataset[name] !== "paper"));

function filter() {
  for (const row of rows) row.hidden = !fits(row);
  for (const section of document.querySelectorAll("section[id^=scoreboard-]"))
    section.hidden = !section.querySelector("[data-outcome]:not([hidden])");
  const claims = rows.filter((row) => row.matches("tr"));
  form.querySelector("output").value =
    `${claims.filter((row) => !row.hidden).length} of ${claims.length} claims`;
}

for (const [name, value] of new URLSearchParams(location.search))
  if (form.elements[name]) form.elements[name].value = value;
form.hidden = false;
form.addEventListener("change", filter);
filter();
if (location.hash === "#claims") form.scrollIntoView();

document.addEventListener("click", ({ target }) => {
  const details = target.closest(".matrix td")?.parentElement.querySelector("details");
  if (details && !target.closest(".claim")) details.open = !details.open;
});
const reveal = () => {
  const details = document.getElementById(location.hash.slice(1))?.closest("details");
  if (details) details.open = true;
};
addEventListener("hashchange", reveal);
reveal();
