"use strict";
// The page is whole without this: it sorts, filters, copies, and shows what is pointed at.
const all = (query, from = document) => [...from.querySelectorAll(query)];
const table = document.querySelector("#trials");

if (table) {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? Number(cell.dataset.sort.replace("inf", "Infinity")) : cell.textContent;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));

  all("th", table.tHead).forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // The best is wanted first, but for the rank and for words.
      const first = column > 0 && "number" in head.dataset ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      all("[aria-sort]", table).forEach((sorted) => sorted.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      body.append(...[...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column))));
    });
  });

  const filter = document.querySelector("#filter");
  const shows = (row, chosen) => {
    const [what, ...rest] = chosen.split(" ");
    const { kind, missed, gates } = row.dataset;
    if (what === "clears") return missed === "0" && (kind === "kept" || kind === "cleared");
    if (what === "missed") return missed === "1";
    if (what === "gate") return gates.split("\n").includes(rest.join(" "));
    return what !== "kind" || kind === rest.join(" ");
  };
  const apply = () => {
    const hidden = new Set();
    for (const row of body.rows) {
      row.hidden = !shows(row, filter.value);
      if (row.hidden) hidden.add(row.dataset.trial);
    }
    for (const mark of all(".mark")) mark.classList.toggle("off", hidden.has(mark.dataset.trial));
    const number = body.rows.length - hidden.size;
    document.querySelector("#count").textContent = `${number} of ${body.rows.length}`;
  };
  filter.addEventListener("change", apply);
  filter.closest("p").hidden = false;
  apply();
}

// What is pointed at, in every chart and in the table at once.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const mark of all(".mark")) {
  // The browser's own hint would lie on top of ours.
  const title = mark.querySelector("title");
  mark.dataset.tip = title.textContent;
  title.remove();
}
let lit = [];
const light = (trial) => {
  lit.forEach((element) => element.classList.remove("on"));
  lit = trial ? all(`[data-trial="${trial}"]`) : [];
  lit.forEach((element) => element.classList.add("on"));
};
document.addEventListener("pointerover", (event) => {
  const over = event.target.closest("[data-trial]");
  light(over?.dataset.trial);
  tip.hidden = !over?.dataset.tip;
  if (tip.hidden) return;
  const name = table?.querySelector(`[data-trial="${over.dataset.trial}"] .name`)?.textContent;
  tip.textContent = `${over.dataset.tip}\n${name ?? ""}`;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4))}px`;
  tip.style.top = `${event.clientY > height + 20 ? event.clientY - height - 12 : event.clientY + 18}px`;
});
document.addEventListener("click", (event) => {
  const mark = event.target.closest(".mark");
  if (mark) location.hash = `t${mark.dataset.trial}`;
});

// A link to a trial opens it.
const open = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
};
addEventListener("hashchange", open);
open();

for (const pre of all(".code pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${pre.getAttribute("aria-label")}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(pre.textContent);
      button.textContent = "Copied";
    } catch {
      // No clipboard here: leave it selected, to be copied by hand.
      getSelection().selectAllChildren(pre);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  pre.before(button);
}
