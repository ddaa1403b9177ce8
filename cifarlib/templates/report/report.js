// Nothing on the page needs this: a switch of colours, the place in the contents, tables that sort,
// folds that open for a link in browsers that do not open them themselves.
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
  const contents = document.querySelector(".contents");
  let marked = null;
  const mark = () => {
    const passed = headings.filter((h) => h.getBoundingClientRect().top < innerHeight * 0.3);
    const current = passed.length ? links.get(passed[passed.length - 1].id) : null;
    if (current === marked) return;
    marked?.removeAttribute("aria-current");
    current?.setAttribute("aria-current", "true");
    if (getComputedStyle(contents).position === "fixed") current?.scrollIntoView({ block: "nearest", behavior: "instant" });
    marked = current;
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; mark(); });
  }, { passive: true });

  // A table sorts by a click on a column's head, and can be taken away as CSV.
  const units = { min: 60, h: 3600, d: 86400 };
  const number = (text) => {
    const match = text.replace(/[−–]/g, "-").replace(/[,<≤]/g, "").match(/^\s*([-+]?\d*\.?\d+(?:e[-+]?\d+)?)\s*(min|h|d)?\b/i);
    return match ? parseFloat(match[1]) * (units[match[2]] ?? 1) : NaN;
  };
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    const [xs, ys] = [a, b].map((text) => text.split(/(\d*\.?\d+)/)); // words and numbers in turn
    const i = xs.findIndex((x, place) => x !== ys[place]);
    return i < 0 ? xs.length - ys.length : i % 2 ? xs[i] - ys[i] || 1 : xs[i].localeCompare(ys[i]);
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
    const original = [...body.rows];
    const text = (row, column) => { // of a cell with several runs, not their names
      const cell = row.cells[Math.min(column, row.cells.length - 1)];
      return (cell.querySelector("summary") ?? cell).textContent.trim();
    };
    if (![...body.rows].some((row) => [...row.cells].some((cell) => cell.rowSpan > 1))) {
      last.forEach((cell, column) => {
        if (cell.colSpan > 1) return;
        const sorter = document.createElement("button");
        sorter.type = "button";
        sorter.append(...cell.childNodes);
        cell.append(sorter);
        sorter.addEventListener("click", () => { // up, down, and as it was
          const order = { ascending: "descending", descending: null }[cell.getAttribute("aria-sort")];
          const next = order === undefined ? "ascending" : order;
          last.forEach((other) => other.removeAttribute("aria-sort"));
          if (next) cell.setAttribute("aria-sort", next);
          const missing = (t) => /^(pending\b.*|running|diverged|–?)$/.test(t);
          const rows = next === null ? original : [...original].sort((a, b) => {
            const [x, y] = [text(a, column), text(b, column)];
            if (missing(x) !== missing(y)) return missing(x) ? 1 : -1;
            return next === "descending" ? compare(y, x) : compare(x, y);
          });
          body.append(...rows);
        });
      });
    }
  }

  // A chapter's notebook, to be downloaded: put together from its cells on the page.
  const cell = (type, source, tags, more = {}) => ({ cell_type: type, metadata: tags.length ? { tags } : {}, source, ...more });
  const code = (source, tags) => cell("code", source, tags, { execution_count: null, outputs: [] });
  document.addEventListener("click", (event) => {
    const name = event.target.closest?.("a.notebook")?.textContent;
    if (!name) return;
    event.preventDefault();
    const places = [...document.querySelectorAll(".cell")].filter((c) => c.dataset.notebook === name);
    const cells = places.sort((a, b) => a.dataset.number - b.dataset.number).flatMap((place) => {
      const { dataset } = place, tags = [...place.classList].filter((c) => c.startsWith("tag-")).map((c) => c.slice(4));
      const source = place.querySelector("details.source pre")?.textContent.replace(/\n$/, "");
      const own = dataset.source === undefined ? code(source ?? "", tags) : cell("markdown", dataset.source, tags);
      return dataset.parameters ? [code(dataset.parameters, ["parameters"]), own] : [own];
    });
    const kernelspec = { display_name: "Python 3 (ipykernel)", language: "python", name: "python3" };
    const content = JSON.stringify({ cells, metadata: { kernelspec }, nbformat: 4, nbformat_minor: 4 }, null, 1);
    const href = URL.createObjectURL(new Blob([content], { type: "application/x-ipynb+json" }));
    Object.assign(document.createElement("a"), { href, download: name }).click();
    URL.revokeObjectURL(href);
  });

  mark();
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    target?.scrollIntoView({ behavior: "instant" });
  };
  addEventListener("hashchange", reveal);
  document.addEventListener("click", (event) => { // the same link twice changes no hash
    if (event.target.closest?.("a[href^='#']")?.hash === location.hash && location.hash) reveal();
  });
  if (location.hash) reveal();

  // On paper the table of all runs is open; single runs are printed where the reader opened them.
  addEventListener("beforeprint", () => document.querySelectorAll("details.all-runs").forEach((d) => { d.open = true; }));
})();
