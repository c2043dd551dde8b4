
// A click on a column's title sorts a table by it; a second click turns the order.
const shown = (row, column) => row.cells[column].firstChild?.textContent ?? "";
const number = (text) => parseFloat(text.replaceAll(",", "").replace("−", "-"));

function compare(first, second, isNumeric) {
  if (!isNumeric) return first.localeCompare(second, undefined, { numeric: true });
  const [a, b] = [number(first), number(second)];
  return Number.isNaN(a) || Number.isNaN(b) ? 0 : a - b;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const titles = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  titles.forEach((title, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const sign = title.ariaSort === "ascending" ? -1 : 1;
      titles.forEach((each) => each.removeAttribute("aria-sort"));
      title.ariaSort = sign > 0 ? "ascending" : "descending";
      const isNumeric = column > 0 && !title.classList.contains("words");
      const isMissing = (row) => isNumeric && Number.isNaN(number(shown(row, column)));
      const rows = [...body.rows];
      const [missing, present] = [rows.filter(isMissing), rows.filter((row) => !isMissing(row))];
      present.sort((a, b) => sign * compare(shown(a, column), shown(b, column), isNumeric));
      body.append(...present, ...missing);
    });
  });
}
