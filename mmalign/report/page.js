(() => {
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const one = (id) => document.getElementById(id);
  const clamp = (value, most) => Math.max(0, Math.min(most, value));
  const slider = one("slider"), zoom = one("zoom");
  const board = JSON.parse(one("board").textContent);
  const steps = slider ? one("controls").dataset.steps.split(" ").map(Number) : [];
  const frames = all("img.frame");
  const frame = () => frames.find((image) => !image.hidden);

  // a grid of pictures as cells that can be opened: each shows its part of the one picture

  const { columns, rows, width, height, gap } = board;
  const percent = (part, of) => (of ? (100 * part) / of : 0) + "%";
  const part = (row, column, less) => ({ // of the picture, without so much at the right and below
    "--aspect": `${width - less} / ${height - less}`,
    "--size": `${percent(columns * width, width - less)} ${percent(rows * height, height - less)}`,
    "--at": `${percent(column * width, columns * width - width + less)} ${percent(row * height, rows * height - height + less)}`,
  });
  const style = (element, values) => { for (const [name, value] of Object.entries(values)) element.style.setProperty(name, value); };
  const score = (name, row, column) => (((board.scores[frame()?.dataset.step] || {})[name] || [])[row] || [])[column] || "";

  const fill = (cells) => {
    const real = cells.classList.contains("real");
    const image = real ? cells.parentElement.querySelector("img") : frame();
    cells.style.setProperty("--grid", `url("${image.src}")`);
    cells.classList.toggle("bare", !board.first || cells.clientWidth / board.columns < 28);
    for (const cell of all(".cell", cells)) {
      const { row, column } = cell.dataset;
      const words = real || !board.first ? "" : score(board.first, row, column);
      cell.lastChild.textContent = words || "\u00a0";
      const where = `${board.prompts[row] || "row " + (+row + 1)}, ${real ? "real data" : "seed " + (board.seeds[column] ?? column)}`;
      cell.setAttribute("aria-label", words ? `${where}, ${board.first} ${words}` : where);
    }
  };

  const build = (cells) => {
    cells.style.setProperty("--columns", board.columns);
    for (let row = 0; row < board.rows; row++) {
      for (let column = 0; column < board.columns; column++) {
        const cell = document.createElement("button");
        cell.type = "button";
        cell.className = "cell";
        cell.tabIndex = row || column ? -1 : 0;
        Object.assign(cell.dataset, { row, column });
        const picture = document.createElement("span");
        style(picture, part(row, column, 0));
        cell.append(picture, document.createElement("small"));
        cell.addEventListener("click", () => open(cells, row, column));
        cells.append(cell);
      }
    }
    cells.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      const { row, column } = event.target.closest(".cell").dataset;
      focus(cells, clamp(+row + move[1], board.rows - 1), clamp(+column + move[0], board.columns - 1));
    });
    cells.hidden = false;
    cells.parentElement.classList.add("celled");
  };

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const focus = (cells, row, column) => {
    for (const cell of all(".cell", cells)) cell.tabIndex = -1;
    const cell = cells.children[row * board.columns + column];
    cell.tabIndex = 0;
    cell.focus();
  };

  // one sample, in full

  let opened = null;
  const open = (cells, row, column) => {
    opened = { cells, row, column };
    const real = cells.classList.contains("real"), zoomed = one("zoomed");
    zoomed.classList.remove("whole");
    style(zoomed, { ...part(row, column, gap), "--ratio": (width - gap) / (height - gap), "--grid": cells.style.getPropertyValue("--grid") });
    one("zoomed-words").textContent = board.prompts[row] || "";
    one("zoomed-note").textContent = real ? "Real data" : `Seed ${board.seeds[column] ?? column}, step ${frame().dataset.step}`;
    zoomed.setAttribute("aria-label", cells.children[row * board.columns + column].getAttribute("aria-label"));
    const names = real ? [] : board.names.filter((name) => name in (board.scores[frame().dataset.step] || {}));
    one("zoomed-scores").replaceChildren(...names.map((name) => {
      const line = document.createElement("div"), word = document.createElement("dt"), value = document.createElement("dd");
      word.textContent = name;
      value.textContent = score(name, row, column) || "missing";
      line.append(word, value);
      return line;
    }));
    for (const button of all("[data-move]", zoom)) button.hidden = false;
    for (const id of ["zoom-before", "zoom-after"]) one(id).hidden = real || !steps.length;
    if (!zoom.open) zoom.showModal();
  };

  const whole = (image) => {
    opened = null;
    const zoomed = one("zoomed");
    zoomed.classList.add("whole");
    zoomed.style.setProperty("--grid", `url("${image.src}")`);
    zoomed.setAttribute("aria-label", image.alt);
    one("zoomed-words").textContent = one("zoomed-note").textContent = "";
    one("zoomed-scores").replaceChildren();
    for (const button of all("[data-move], #zoom-before, #zoom-after", zoom)) button.hidden = true;
    zoom.showModal();
  };

  const move = (across, down) => {
    if (!opened) return;
    open(opened.cells, clamp(opened.row + down, board.rows - 1), clamp(opened.column + across, board.columns - 1));
  };

  for (const button of all("[data-move]", zoom)) button.addEventListener("click", () => move(...button.dataset.move.split(" ").map(Number)));
  one("zoom-close").addEventListener("click", () => zoom.close());
  zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
  zoom.addEventListener("close", () => { if (opened) focus(opened.cells, opened.row, opened.column); });
  zoom.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (moves[event.key] && opened) { event.preventDefault(); move(...moves[event.key]); }
  });

  for (const image of all(".seen img")) {
    const small = () => image.classList.toggle("small", image.naturalWidth < 100);
    image.complete ? small() : image.addEventListener("load", small);
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", () => whole(image));
    image.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); whole(image); } });
  }

  const boards = frames.length ? all(".cells") : [];
  boards.forEach(build);
  const refill = () => boards.forEach(fill);
  addEventListener("resize", refill);
  refill();

  // the slider, and the marks of its step in the figures

  if (!slider) return;
  const readings = all("data.reading").map((reading) => reading.textContent);
  const shown = all("img.frame, .told.at");
  const plots = all("svg[data-x0]");
  const readout = one("readout");
  const show = (index) => {
    index = clamp(index, steps.length - 1);
    slider.value = index;
    const step = steps[index];
    for (const each of shown) each.hidden = +each.dataset.step !== step;
    slider.setAttribute("aria-valuetext", "step " + step);
    const bold = document.createElement("b");
    bold.textContent = "Step " + step;
    readout.replaceChildren(bold, readings[index] ? " · " + readings[index] : "");
    for (const plot of plots) {
      const { x0, x1, left, right } = plot.dataset;
      const x = +left + (step - x0) / (x1 - x0) * (right - left);
      const cursor = plot.querySelector(".cursor");
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.toggleAttribute("hidden", x < +left - 1 || x > +right + 1);
    }
    refill();
    if (opened && zoom.open) open(opened.cells, opened.row, opened.column);
  };
  slider.addEventListener("input", () => show(+slider.value));
  for (const id of ["before", "zoom-before"]) one(id).addEventListener("click", () => show(0));
  for (const id of ["after", "zoom-after"]) one(id).addEventListener("click", () => show(steps.length - 1));
  document.addEventListener("keydown", (event) => {
    if (event.target === slider || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("pre")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(+slider.value + step); }
  });
  show(+slider.value);
})();
