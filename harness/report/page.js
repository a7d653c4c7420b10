"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (root, selector) => [...root.querySelectorAll(selector)];
  const show = (element) => element && element.removeAttribute("hidden");
  const own = (object, name) => (Object.hasOwn(object, name) ? object[name] : undefined);
  const percent = (value, digits = 2) => (value === null ? "–" : value.toFixed(digits));

  // colours: of the system, or chosen and remembered where the browser allows it
  const theme = document.getElementById("theme");
  const THEMES = ["system", "light", "dark"];
  const kept = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("harness-report-theme");
      localStorage.setItem("harness-report-theme", value);
    } catch { /* a file may not keep anything */ }
    return null;
  };
  const setTheme = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    theme.textContent = `Colours: ${name}`;
  };
  let chosen = THEMES.includes(kept()) ? kept() : "system";
  setTheme(chosen);
  show(theme);
  theme.addEventListener("click", () => {
    chosen = THEMES[(THEMES.indexOf(chosen) + 1) % THEMES.length];
    setTheme(chosen);
    kept(chosen);
  });

  // tables of several tasks: one at a time, the one that a link leads to
  const table = document.getElementById("table");
  const chapters = all(document, ".chapter");
  const setTable = () => chapters.forEach((each) => {
    const other = each.id !== table.value;
    each.classList.toggle("off", table.value !== "" && other);
    document.querySelector(`nav [data-of="${each.id}"]`).classList.toggle("off", other);
  });
  const follow = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    const chapter = target && target.closest(".chapter");
    if (!chapter || !chapter.classList.contains("off")) return;
    table.value = chapter.id;
    setTable();
    target.scrollIntoView();
  };
  if (table) {
    show(document.getElementById("tables"));
    table.addEventListener("change", setTable);
    setTable();
    addEventListener("hashchange", follow);
    follow();
  }
  const contents = document.querySelector("nav details");
  if (matchMedia("(max-width: 63.99rem)").matches) contents.open = false;

  // sorting: rows without a value stay last
  const sort = (board, column, direction) => {
    const body = board.tBodies[0];
    const sign = direction === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.v;
    const numbers = column > 0;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (numbers ? x - y : x.localeCompare(y, "en", { numeric: true }));
    });
    body.append(...rows);
    all(board, "th[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
    board.tHead.rows[0].cells[column].setAttribute("aria-sort", direction);
  };
  const sorted = (board) => {
    const head = board.querySelector("th[aria-sort]");
    return head && [head.cellIndex, head.getAttribute("aria-sort")];
  };

  // what a row shows of a dataset, in percent: [value, low, high, finished, other evaluations ...]
  const fill = (board, of, dataset) => {
    const cells = of.scores[dataset];
    const there = cells.flatMap((cell) => cell.slice(0, 3)).filter((value) => value !== null);
    const [low, high] = [Math.min(...there), Math.max(...there)];
    const at = (value) => `${(100 * (value - low) / (high - low)).toFixed(1)}%`;
    all(board, "tbody tr").forEach((row) => {
      const [value, from, to, finished, ...others] = cells[of.labels.indexOf(row.dataset.m)];
      const main = row.querySelector(".main");
      [...others, value].forEach((each, place) => {
        const cell = row.cells[place + 1];
        cell.textContent = percent(each);
        cell.dataset.v = each === null ? "" : each;
        cell.classList.toggle("part", finished);
      });
      row.querySelector(".interval").textContent =
        from === null ? "" : `${percent(from, 1)}–${percent(to, 1)}`;
      const place = row.querySelector(".place");
      const known = dataset === "average" ? own(of.places, row.dataset.m) : undefined;
      place.textContent = known ? `${known[0]}–${known[1]}` : "–";
      place.dataset.v = known ? known[0] + known[1] / 1000 : "";
      const drawn = row.querySelector("td.drawn");
      drawn.replaceChildren();
      if (value === null || !(high > low)) return;
      const make = (parent, name, attributes) => {
        const made = document.createElementNS("http://www.w3.org/2000/svg", name);
        Object.entries(attributes).forEach(([each, text]) => made.setAttribute(each, text));
        return parent.appendChild(made);
      };
      const bar = make(drawn, "svg", { class: "bar", height: 14, "aria-hidden": "true" });
      if (from !== null) make(bar, "line", { x1: at(from), x2: at(to), y1: 7, y2: 7 });
      make(bar, "circle", { cx: at(value), cy: 7, r: 3.5 });
    });
    const now = sorted(board);
    if (now) sort(board, ...now);
  };

  const setLosses = (chapter, losses, dataset) => {
    const chart = chapter.querySelector("[id$='-losses']");
    if (!losses.at) return;
    all(chart, "polyline").forEach((line) => {
      const heights = dataset === "average" ? undefined : own(losses.by_dataset[dataset], line.dataset.m);
      line.dataset.average ??= line.getAttribute("points");
      const points = heights ? heights.map((y, place) => `${losses.at[place]},${y}`).join(" ")
        : dataset === "average" ? line.dataset.average : "";
      line.setAttribute("points", points);
    });
    const about = chart.querySelector(".of");
    about.dataset.average ??= about.textContent;
    about.textContent = dataset === "average" ? about.dataset.average : `, ${dataset}`;
  };

  const compare = (chapter, pairs) => {
    if (!pairs) return;
    const [first, second] = [chapter.querySelector(".a"), chapter.querySelector(".b")];
    const verdict = chapter.querySelector(".verdict");
    [first, second].forEach((select) => pairs.labels.forEach((label, place) => {
      select.append(new Option(label, place));
    }));
    const say = () => {
      const [a, b] = [Number(first.value), Number(second.value)];
      if (a === b) {
        verdict.textContent = "Choose two methods.";
        return;
      }
      const [high, low] = a > b ? [a, b] : [b, a];
      const points = 100 * (pairs.values[a] - pairs.values[b]);
      const p = pairs.p[high][low];
      const apart = pairs.told[high][low] === "1";
      verdict.textContent =
        `${pairs.labels[a]} is ${Math.abs(points).toFixed(2)} points ${points < 0 ? "below" : "above"} ` +
        `${pairs.labels[b]}. They are ${apart ? "" : "not "}told apart ` +
        `(${p < 0.001 ? "p < 0.001" : `p = ${Number(p.toPrecision(2))}`}, adjusted for all pairs).`;
    };
    second.value = Math.min(1, pairs.labels.length - 1);
    [first, second].forEach((select) => select.addEventListener("change", say));
    const matrix = chapter.querySelector(".matrix");
    matrix.addEventListener("click", (event) => {
      const box = matrix.getBoundingClientRect();
      const at = (pixels) => Math.floor(pixels / Number(matrix.dataset.size));
      const row = at(event.clientY - box.top - 20);
      const column = at(event.clientX - box.left - Number(matrix.dataset.left));
      if (row < 0 || column < 0 || row >= pairs.labels.length || column >= pairs.labels.length) return;
      first.value = row;
      second.value = column;
      say();
    });
    show(chapter.querySelector(".compare"));
    show(verdict);
    say();
  };

  data.forEach((of) => {
    const chapter = document.getElementById(of.id);
    const board = chapter.querySelector(".board");
    const filters = chapter.querySelector(".filters");
    const [dataset, family, text] = [".dataset", ".family", ".text"].map((s) => filters.querySelector(s));
    show(filters);
    all(board, "thead button").forEach((button) => button.addEventListener("click", () => {
      const column = button.closest("th").cellIndex;
      const now = sorted(board);
      const turned = now && now[0] === column;
      const other = turned && now[1] === "ascending" ? "descending" : "ascending";
      sort(board, column, turned ? other : button.dataset.first);
    }));
    const main = all(board, "thead th").findIndex((each) => each.textContent === of.score);
    if (main > 0) sort(board, main, "descending");

    const filter = () => {
      const words = text.value.trim().toLowerCase();
      const fits = Object.fromEntries(of.labels.map((label, place) => [label,
        (!family.value || of.families[place] === family.value) && label.toLowerCase().includes(words)]));
      all(chapter, "[data-m]").forEach((each) => each.classList.toggle("off", !fits[each.dataset.m]));
      const number = Object.values(fits).filter(Boolean).length;
      filters.querySelector(".count").textContent = `${number} of ${of.labels.length} methods`;
    };
    family.addEventListener("change", filter);
    text.addEventListener("input", filter);
    filter();

    const sections = all(chapter, "details.dataset");
    if (dataset) {
      dataset.addEventListener("change", () => {
        fill(board, of, dataset.value);
        setLosses(chapter, of.losses, dataset.value);
        sections.forEach((each) => {
          const mine = each.dataset.dataset === dataset.value;
          each.classList.toggle("off", dataset.value !== "average" && !mine);
          if (mine) each.open = true;
        });
      });
    }
    compare(chapter, of.pairs);

    // costs: one picture at a time
    const choice = chapter.querySelector(".choice");
    const kinds = all(choice, "button");
    const choose = (kind) => {
      kinds.forEach((each) => each.setAttribute("aria-pressed", each.dataset.kind === kind));
      all(chapter, "figure").forEach((each) => each.classList.toggle("off", each.dataset.kind !== kind));
    };
    kinds.forEach((each) => each.addEventListener("click", () => choose(each.dataset.kind)));
    show(choice);
    choose("params");
  });

  // lines: the legend chooses which are drawn in colour
  all(document, ".legend").forEach((legend) => {
    const chart = legend.previousElementSibling;
    all(legend, "button").forEach((button) => {
      const line = all(chart, "polyline").find((each) => each.dataset.m === button.dataset.m);
      const raise = (on) => () => line.classList.toggle("seen", on);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", on);
        line.classList.toggle("lit", on);
        if (on) line.parentNode.append(line);
      });
      ["pointerenter", "focus"].forEach((name) => button.addEventListener(name, raise(true)));
      ["pointerleave", "blur"].forEach((name) => button.addEventListener(name, raise(false)));
    });
  });
})();
