// Nothing on the page needs this: a switch of colours, the place in the contents, tables that sort.
(() => {
  "use strict";
  const root = document.documentElement;

  // Light or dark: as the system says, until the reader chooses.
  const remembered = { get() { try { return localStorage.getItem("theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("theme", value); } catch { /* a file may have no storage */ } } };
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const button = document.createElement("button");
  button.type = "button";
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
  if (["light", "dark"].includes(remembered.get())) root.dataset.theme = remembered.get();
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; remembered.set(root.dataset.theme); label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
  document.querySelector(".ribbon").append(button);

  // The section being read is marked in the contents.
  const links = new Map([...document.querySelectorAll(".contents a")].map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
  const headings = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  let marked = null;
  const mark = () => {
    const passed = headings.filter((h) => h.getBoundingClientRect().top < innerHeight * 0.3);
    const current = passed.length ? links.get(passed[passed.length - 1].id) : null;
    if (current === marked) return;
    marked?.removeAttribute("aria-current");
    current?.setAttribute("aria-current", "true");
    current?.scrollIntoView?.({ block: "nearest", behavior: "instant" });
    marked = current;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });

  // A table sorts by a click on a column's head, and can be taken away as CSV.
  const number = (text) => { const match = text.replace(/[−–]/g, "-").replace(/,/g, "").match(/^\s*[-+]?\d*\.?\d+(e[-+]?\d+)?/i); return match ? parseFloat(match[0]) : NaN; };
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return a.localeCompare(b);
  };
  const grid = (head) => { // cells of a head by row and column, spans filled
    const rows = [...head.rows].map(() => []);
    [...head.rows].forEach((row, r) => {
      let c = 0;
      for (const cell of row.cells) {
        while (rows[r][c]) c++;
        for (let i = 0; i < cell.rowSpan; i++) for (let j = 0; j < cell.colSpan; j++) (rows[r + i] ??= [])[c + j] = cell;
        c += cell.colSpan;
      }
    });
    return rows;
  };
  for (const table of document.querySelectorAll("table.data")) {
    const body = table.tBodies[0];
    if (!table.tHead || !body || body.rows.length < 2) continue;
    const head = grid(table.tHead);
    const last = head[head.length - 1];
    const text = (row, column) => row.cells[Math.min(column, row.cells.length - 1)].textContent.trim();
    if (![...body.rows].some((row) => [...row.cells].some((cell) => cell.rowSpan > 1))) {
      last.forEach((cell, column) => {
        if (cell.colSpan > 1) return;
        const sorter = document.createElement("button");
        sorter.type = "button";
        sorter.append(...cell.childNodes);
        cell.append(sorter);
        sorter.addEventListener("click", () => {
          const down = cell.getAttribute("aria-sort") === "ascending";
          last.forEach((other) => other.removeAttribute("aria-sort"));
          cell.setAttribute("aria-sort", down ? "descending" : "ascending");
          const missing = (t) => t === "pending" || t === "";
          const rows = [...body.rows].sort((a, b) => {
            const [x, y] = [text(a, column), text(b, column)];
            if (missing(x) !== missing(y)) return missing(x) ? 1 : -1;
            return down ? compare(y, x) : compare(x, y);
          });
          body.append(...rows);
        });
      });
    }
    const figure = table.closest("figure.table");
    if (!figure) continue;
    const csv = document.createElement("button");
    csv.type = "button";
    csv.className = "csv";
    csv.textContent = "CSV";
    csv.setAttribute("aria-label", `Save ${figure.id.replace("-", " ")} as CSV`);
    csv.addEventListener("click", () => {
      const quote = (value) => (/[",\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
      const names = last.map((_, column) => [...new Set(head.map((row) => row[column]))].map((cell) => cell.textContent.trim()).join(", "));
      const rows = [...body.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim().replace(/^−/, "-")));
      const content = [names, ...rows].map((row) => row.map(quote).join(",")).join("\r\n");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(["\ufeff", content, "\r\n"], { type: "text/csv" }));
      link.download = `${figure.id}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    figure.querySelector("figcaption")?.prepend(csv);
  }
  mark();
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();

  // On paper everything that is folded except code is open.
  addEventListener("beforeprint", () => document.querySelectorAll("details.runs").forEach((d) => { d.open = true; }));
})();
