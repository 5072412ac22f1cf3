"use strict";
// Charts, tables and the gallery of a report. Texts of the data only ever become text nodes.
(() => {
  const AT_ONCE = 48; // cards drawn when the end of those before comes into sight
  const STRIP = 2; // cards of each of best, median and worst
  const PRINTED_WIDTH = 680; // CSS pixels of A4 between margins
  const SHORT = 32; // letters of a text in a table that is not broken into lines
  const SHARP = 48; // pictures of fewer pixels a side are enlarged without smoothing
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function stored(id) {
    return JSON.parse(document.getElementById(id).textContent);
  }

  // ---- charts -----------------------------------------------------------------------------------

  const charts = [...document.querySelectorAll(".chart")];

  function draw(chart) {
    if (chart.dataset.drawn) return;
    chart.dataset.drawn = "yes";
    const { data, layout } = stored(`${chart.id}-data`);
    delete layout.width;
    layout.font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: "#1f2933", ...layout.font };
    layout.margin ??= { t: layout.title?.text ? 60 : 24, r: 24, b: 56, l: 64 };
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    Plotly.newPlot(chart, data, { paper_bgcolor: "rgba(0,0,0,0)", autosize: true, ...layout }, config);
  }

  const inSight = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((each) => each.isIntersecting)) {
        inSight.unobserve(entry.target);
        draw(entry.target);
      }
    },
    { rootMargin: "400px" },
  );
  // plotly.js stands below this script, so that the gallery need not wait for it
  document.addEventListener("plotly", () => charts.forEach((chart) => inSight.observe(chart)));

  addEventListener("beforeprint", () => {
    for (const chart of charts) {
      draw(chart);
      Plotly.relayout(chart, { width: PRINTED_WIDTH, autosize: false });
    }
  });
  addEventListener("afterprint", () => {
    for (const chart of charts) Plotly.relayout(chart, { width: null, autosize: true });
  });

  // ---- tables -----------------------------------------------------------------------------------

  function numberIn(text) {
    const found = text.replace(/,(?=\d{3})/g, "").replace("\u2212", "-").match(/^[<>≤≥~\s]*([-+]?\d*\.?\d+(e[-+]?\d+)?)/i);
    return found ? Number(found[1]) : null;
  }

  function sortBy(table, column) {
    const heading = table.tHead.rows[0].cells[column];
    const descending = heading.ariaSort === "ascending";
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
    const filled = rows.filter(({ text }) => !["", "-", "–"].includes(text));
    const numeric = filled.every(({ text }) => numberIn(text) !== null);
    filled.sort((a, b) => (numeric ? numberIn(a.text) - numberIn(b.text) : collator.compare(a.text, b.text)));
    if (descending) filled.reverse();
    // what has no value comes last in either order
    const empty = rows.filter((each) => !filled.includes(each));
    table.tBodies[0].append(...[...filled, ...empty].map(({ row }) => row));
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    heading.ariaSort = descending ? "descending" : "ascending";
  }

  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sortBy(button.closest("table"), button.parentElement.cellIndex));
  }
  // a column is set as numbers where all of it is; short texts stand in one line
  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const cells = [...table.tBodies[0].rows].map((row) => row.cells[column]);
      for (const cell of cells) cell.classList.toggle("short", cell.textContent.length <= SHORT);
      const texts = cells.map((cell) => cell.textContent.trim()).filter((text) => !["", "-", "–"].includes(text));
      if (!texts.length || !texts.every((text) => /^[<>≤≥~\s]*[-+\u2212]?[\d.]/.test(text))) return;
      for (const cell of [heading, ...cells]) cell.classList.add("number");
    });
  }

  // ---- enlarged view ----------------------------------------------------------------------------

  const dialog = document.querySelector("dialog.enlarged");
  const content = dialog.querySelector(".content");
  let shown = { length: 1, at: 0, fill: () => content.replaceChildren() };

  function go(step) {
    const to = shown.at + step;
    if (to < 0 || to >= shown.length) return;
    shown.at = to;
    content.replaceChildren(...shown.fill(to));
    dialog.scrollTop = 0;
    dialog.classList.toggle("single", shown.length === 1);
    dialog.querySelector(".place").textContent = `${to + 1} of ${shown.length.toLocaleString("en")}`;
    dialog.querySelector(".previous").disabled = to === 0;
    dialog.querySelector(".next").disabled = to === shown.length - 1;
  }

  function enlarge(length, at, fill) {
    shown = { length, at, fill };
    go(0);
    if (!dialog.open) dialog.showModal();
  }

  dialog.querySelector(".previous").addEventListener("click", () => go(-1));
  dialog.querySelector(".next").addEventListener("click", () => go(1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  // a click beside the view meets the dialog itself
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    go(step);
  });

  for (const button of document.querySelectorAll("button.picture")) {
    button.addEventListener("click", () => {
      const caption = button.parentElement.querySelector("figcaption").textContent;
      enlarge(1, 0, () => [button.firstElementChild.cloneNode(), make("p", { textContent: caption })]);
    });
  }

  // ---- gallery of stimuli -----------------------------------------------------------------------

  function readCases(id) {
    const { cases, block, runs, people, stimuli, labels, candidates } = stored(`${id}-data`);
    const candidate = ([number, right]) => {
      const [name, label, picture] = candidates[number];
      return { name, label: labels[label], picture, right: right === 1 };
    };
    const read = ([run, person, stimulus, label, seen, retrieved, generated, rank, among]) => ({
      run: runs[run],
      person: people[person],
      stimulus: stimuli[stimulus],
      label: labels[label],
      seen,
      retrieved: retrieved.map(candidate),
      generated,
      rank,
      among,
      // share of the other candidates that are less similar, whatever their number; NaN where nothing was retrieved
      quality: among > 1 ? 1 - (rank - 1) / (among - 1) : NaN,
    });
    const all = cases.map(read);
    return { cases: all, block, runs, people, labels: [...new Set(all.map((one) => one.label))].filter((label) => label) };
  }

  function gallery(root) {
    const { cases, block, runs, people, labels } = readCases(root.id);
    const find = (selector) => root.querySelector(selector);
    const form = find("form");
    const { search, person, run, order } = form.elements;
    const cards = find(".cards");
    const classes = new Set(labels.map((label) => label.toLowerCase()));
    const blocks = new Map();
    let chosen = [];

    function url(picture) {
      const number = Math.floor(picture / block);
      if (!blocks.has(number)) {
        const element = document.getElementById(`${root.id}-pictures-${number}`);
        // what nothing follows yet may be read in part
        if (!element || (document.readyState === "loading" && !element.nextSibling)) return null;
        blocks.set(number, JSON.parse(element.textContent));
      }
      return blocks.get(number)[picture % block];
    }

    function image(picture, alt) {
      const element = make("img", { alt, decoding: "async", loading: "lazy" });
      element.addEventListener("load", () => {
        element.classList.toggle("sharp", Math.max(element.naturalWidth, element.naturalHeight) < SHARP);
      });
      const source = url(picture);
      if (source) element.src = source;
      // pictures stand at the end of the page, which may still be read
      else addEventListener("DOMContentLoaded", () => (element.src = url(picture)), { once: true });
      return element;
    }

    function thumb(picture, alt, name, { right = false, near = false, large = false } = {}) {
      const frame = make("span", { className: "thumb", title: name });
      frame.classList.toggle("right", right);
      frame.classList.toggle("near", near);
      frame.append(picture < 0 ? make("span", { className: "name", textContent: name }) : image(picture, alt));
      if (right) frame.append(make("span", { className: "mark", textContent: "✓", title: "the right one" }));
      if (large && picture >= 0) frame.append(make("span", { className: "under", textContent: name }));
      return frame;
    }

    function group(title, kind, thumbs) {
      const what = make("span", { className: "what", textContent: title });
      return make("span", { className: `group ${kind}` }, what, make("span", { className: "thumbs" }, ...thumbs));
    }

    function candidate(one, each, index, large) {
      const near = !each.right && each.label !== "" && each.label === one.label;
      const known = each.label && each.label !== each.name ? `${each.name} (${each.label})` : each.name;
      const said = `${known}${each.right ? ": right" : near ? ": same class" : ""}`;
      const name = `${index + 1}. ${large ? said : each.name}`;
      return thumb(each.picture, `Retrieved ${index + 1}: ${said}`, name, { right: each.right, near, large });
    }

    function groups(one, large) {
      const retrieved = one.retrieved.map((each, index) => candidate(one, each, index, large));
      const generated = one.generated.map((picture, index) => thumb(picture, `Generated ${index + 1}`, ""));
      return [
        ...(one.seen < 0 ? [] : [group("seen", "seen", [thumb(one.seen, `Seen: ${one.stimulus}`, "")])]),
        ...(retrieved.length ? [group("retrieved, best first", "retrieved", retrieved)] : []),
        ...(generated.length ? [group("generated", "generated", generated)] : []),
      ];
    }

    function rankOf(one) {
      return one.among ? `rank ${one.rank.toLocaleString("en")} of ${one.among.toLocaleString("en")}` : "nothing retrieved";
    }

    function about(one, all) {
      const known = [one.label === one.stimulus && !all ? "" : one.label, all || people.length > 1 ? `person\u00a0${one.person}` : "",
        all || runs.length > 1 ? one.run : ""];
      return known.filter((text) => text).join(" · ");
    }

    function fill(index) {
      const one = chosen[index];
      const share = `${(100 * one.quality).toFixed(1)}\u00a0% of the other candidates are less similar to what was decoded (chance 50\u00a0%)`;
      return [
        make("h3", { textContent: one.stimulus }),
        make("p", { className: "meta", textContent: about(one, true) }),
        make("p", { textContent: one.among > 1 ? `The right one has ${rankOf(one)}: ${share}.` : rankOf(one) }),
        make("div", { className: "groups" }, ...groups(one, true)),
      ];
    }

    function card(one, index) {
      const button = make("button", { type: "button", className: "case" });
      button.setAttribute("aria-label", `Enlarge ${one.stimulus}, ${about(one, true)}, ${rankOf(one)}`);
      const title = make("span", { className: "stimulus", textContent: one.stimulus, title: one.stimulus });
      const bar = make("span", { className: "bar" }, make("span", {}));
      bar.firstChild.style.width = `${100 * (one.quality || 0)}%`;
      const meta = about(one, false);
      const parts = groups(one, false);
      // beside the seen picture, where there is one
      const seen = one.seen < 0 ? [] : parts.splice(0, 1);
      const told = make("span", { className: "about" }, title, make("span", { className: "meta", textContent: meta, title: meta }),
        make("span", { className: "rank", textContent: rankOf(one) }), bar);
      button.append(...seen, told, ...parts);
      button.addEventListener("click", () => enlarge(chosen.length, index, fill));
      return make("li", {}, button);
    }

    function drawMore() {
      const start = cards.childElementCount;
      cards.append(...chosen.slice(start, start + AT_ONCE).map((one, offset) => card(one, start + offset)));
      const left = chosen.length - cards.childElementCount;
      find(".left-out").textContent = left
        ? `${cards.childElementCount.toLocaleString("en")} of ${chosen.length.toLocaleString("en")} cases are printed, ${left.toLocaleString("en")} are left out.`
        : "";
      // tells again whether the end is in sight
      end.unobserve(find(".more"));
      if (left) end.observe(find(".more"));
    }

    function drawStrip() {
      const ranked = chosen.map((one, index) => ({ one, index })).filter(({ one }) => !Number.isNaN(one.quality));
      ranked.sort((a, b) => b.one.quality - a.one.quality);
      const middle = Math.max(0, Math.floor((ranked.length - STRIP) / 2));
      const columns = ranked.length < 3 * STRIP ? [] : [["Best", 0], ["Median", middle], ["Worst", ranked.length - STRIP]];
      find(".strip").replaceChildren(
        ...columns.map(([title, start]) => {
          const list = make("ul", {}, ...ranked.slice(start, start + STRIP).map(({ one, index }) => card(one, index)));
          return make("div", {}, make("h3", { textContent: title }), list);
        }),
      );
    }

    function fits() {
      const wanted = search.value.trim().toLowerCase();
      const exact = classes.has(wanted);
      return (one) =>
        (!person.value || one.person === person.value) &&
        (!run.value || one.run === run.value) &&
        (!wanted || (exact ? one.label.toLowerCase() === wanted : `${one.label}\n${one.stimulus}`.toLowerCase().includes(wanted)));
    }

    const better = (a, b) => (Number.isNaN(a.quality) - Number.isNaN(b.quality)) || b.quality - a.quality;
    const orders = {
      best: better,
      worst: (a, b) => (Number.isNaN(a.quality) - Number.isNaN(b.quality)) || a.quality - b.quality,
      stimulus: (a, b) => collator.compare(a.stimulus, b.stimulus) || collator.compare(a.person, b.person) || better(a, b),
    };

    function update() {
      chosen = cases.filter(fits()).sort(orders[order.value]);
      const all = `${cases.length.toLocaleString("en")} cases`;
      find(".count").textContent = !chosen.length
        ? `None of ${all} fits: change what is chosen above.`
        : chosen.length === cases.length ? `All ${all}` : `${chosen.length.toLocaleString("en")} of ${all}`;
      find(".all").hidden = find(".scroll").hidden = !chosen.length;
      cards.replaceChildren();
      find(".scroll").scrollTop = 0;
      drawStrip();
      drawMore();
    }

    function offer(select, values, every) {
      select.replaceChildren(new Option(every, ""), ...values.map((value) => new Option(value, value)));
      select.parentElement.hidden = values.length < 2;
    }

    labels.sort(collator.compare);
    find("datalist").replaceChildren(...labels.map((value) => new Option(value, value)));
    search.placeholder = labels.length ? `all ${labels.length.toLocaleString("en")} classes` : "all stimuli";
    offer(person, [...people].sort(collator.compare), `all ${people.length} people`);
    offer(run, runs, `all ${runs.length} runs`);
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(update));
    const end = new IntersectionObserver((entries) => entries.some((each) => each.isIntersecting) && drawMore(), {
      root: find(".scroll"), rootMargin: "600px",
    });
    update();
  }

  document.querySelectorAll(".gallery").forEach(gallery);
  performance.mark("interactive");

  // ---- which section is read ---------------------------------------------------------------------

  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const reading = new IntersectionObserver(
    (entries) => {
      for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id).setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-20% 0px -75% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => reading.observe(section));
})();
