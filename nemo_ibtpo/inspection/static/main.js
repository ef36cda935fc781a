// Puts the page together.

document.querySelector("nav").append(...Object.entries(VIEWS).map(([name, {title}]) => (
  element("a", {href: `#${name}`}, title)
)));
document.getElementById("runs").append(...RUNS.map((_, i) => runChip(i)));
for (const {label, omitted} of RUNS) {
  if (omitted) {
    document.querySelector("header").append(
      element("span", {class: "note"}, `${label}: trees of ${omitted} more steps are on disk, not in this file`),
    );
  }
}
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
addEventListener("hashchange", route);
route();
