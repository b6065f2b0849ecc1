// The page is whole without this: it lets headings of the table of linears sort it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? "";
      const compare = (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const numbers = (a, b) => Number(value(a)) - Number(value(b));
      const order = column === 0 ? compare : numbers;
      const rows = [...body.rows].sort((a, b) => (descending ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });
}
