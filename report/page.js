"use strict";
// The table of utterances: searches, sorts and shows what the JSON beside it holds. Text is only ever set as text.
(() => {
  const PAGE = 25;
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const said = (text, attributes = {}) => make("bdi", { dir: "auto", ...attributes }, text);
  const share = (x) => (x === null ? "–" : (x / 1000).toFixed(3)); // null: a head that predicts nothing here

  function start(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const count = data.id.length, classes = data.emotions.length;
    const haystack = data.id.map((id, k) => `${id}\n${data.speaker[k]}\n${data.text[k]}`.toLowerCase());
    const columns = [
      { name: "id", title: "Utterance", key: (k) => data.id[k] },
      { name: "chart", title: "Raters and prediction" },
      { name: "ambiguity", title: "Ambiguity", hint: "entropy of the raters, bits", key: (k) => data.ambiguity[k] },
    ];
    if (data.conflict) columns.push({ name: "conflict", title: "Conflict", hint: "JS between the modalities' heads, bits", key: (k) => data.conflict[k] });
    data.measures.forEach((measure, m) => columns.push({ name: `measure${m}`, title: measure.title, hint: "mean over seeds", key: (k) => measure.values[k] }));
    columns.push({ name: "js", title: "JS", hint: "between raters and prediction, bits", key: (k) => data.js[k] });
    const presets = [
      { title: "All", sort: "id", down: false },
      { title: "Raters split", sort: "ambiguity", down: true },
      ...(data.conflict ? [{ title: "Modalities conflict", sort: "conflict", down: true }] : []),
      { title: "Worst predicted", sort: "js", down: true },
    ];
    const state = { sort: "js", down: true, words: "", shown: PAGE, rows: [] };

    const search = make("input", { type: "search", placeholder: "Search transcript, id or speaker", "aria-label": "Search utterances" });
    const buttons = presets.map((preset) => {
      const button = make("button", { type: "button", "aria-pressed": "false" }, preset.title);
      button.addEventListener("click", () => { Object.assign(state, { sort: preset.sort, down: preset.down, shown: PAGE }); update(); });
      return button;
    });
    const status = make("span", { class: "count", role: "status" });
    const heads = columns.map((column) => {
      const th = make("th", { scope: "col", "data-name": column.name });
      if (column.hint) th.title = column.hint;
      if (!column.key) { th.append(column.title); return th; }
      const button = make("button", { type: "button" }, column.title);
      button.addEventListener("click", () => {
        state.down = state.sort === column.name ? !state.down : column.name !== "id";
        Object.assign(state, { sort: column.name, shown: PAGE });
        update();
      });
      th.append(button);
      return th;
    });
    const body = make("tbody");
    const more = make("button", { type: "button", class: "more" }, "Show more");
    more.addEventListener("click", () => { state.shown += PAGE; draw(); });
    let timer;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => { state.words = search.value.toLowerCase().trim(); state.shown = PAGE; update(); }, 80);
    });
    box.append(
      make("div", { class: "tools" }, search, ...buttons),
      make("p", {},
        make("span", { class: "key" }, make("i", { class: "rated" }), "raters"),
        make("span", { class: "key" }, make("i"), said(data.heads[data.main])), status),
      make("table", { class: "list" }, make("thead", {}, make("tr", {}, ...heads, make("th", {}))), body),
      more,
    );

    function update() {
      const column = columns.find((one) => one.name === state.sort);
      const words = state.words.split(/\s+/).filter(Boolean);
      const rows = [];
      for (let k = 0; k < count; k++) if (words.every((word) => haystack[k].includes(word))) rows.push(k);
      const keys = rows.map(column.key);
      const order = rows.map((_, i) => i);
      const sign = state.down ? -1 : 1;
      const last = (i) => (keys[i] === null ? 1 : 0); // what has no number comes last, up or down
      order.sort((a, b) => last(a) - last(b) || sign * (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0) || a - b);
      state.rows = order.map((i) => rows[i]);
      presets.forEach((preset, i) => buttons[i].setAttribute("aria-pressed", String(preset.sort === state.sort && preset.down === state.down)));
      columns.forEach((one, i) => {
        if (one.name === state.sort) heads[i].setAttribute("aria-sort", state.down ? "descending" : "ascending");
        else heads[i].removeAttribute("aria-sort");
      });
      draw();
    }

    function draw() {
      const rows = state.rows.slice(0, state.shown);
      body.replaceChildren(...rows.map(row));
      status.textContent = state.rows.length === count ? `${count} utterances` : `${state.rows.length} of ${count} utterances`;
      more.hidden = state.shown >= state.rows.length;
    }

    function row(k) {
      const about = [data.id[k], data.speaker[k] && `speaker ${data.speaker[k]}`, `fold ${data.fold[k]}`].filter(Boolean);
      const open = make("button", { type: "button", "aria-expanded": "false" }, "All heads");
      const who = make("td", { class: "who" }, said(data.text[k], { class: "said" }), said(about.join(" · "), { class: "id" }), votes(k), ...player(k));
      const chart = make("td", {}, bars(k));
      const cells = columns.slice(2).map((column) => make("td", { class: "n", "data-name": column.title }, share(column.key(k))));
      const tr = make("tr", { "data-id": data.id[k] }, who, chart, ...cells, make("td", { class: "open" }, open));
      open.addEventListener("click", () => {
        const opened = open.getAttribute("aria-expanded") === "true";
        open.setAttribute("aria-expanded", String(!opened));
        if (opened) tr.nextElementSibling.remove();
        else tr.after(make("tr", { class: "heads" }, make("td", { colspan: columns.length + 1 }, allHeads(k))));
      });
      return tr;
    }

    function votes(k) {
      if (!data.votes) return "";
      const own = data.emotions.map((emotion, c) => [data.votes[k * classes + c], emotion]).filter(([n]) => n > 0);
      own.sort((a, b) => b[0] - a[0]);
      return make("span", { class: "voted" }, `Votes: ${own.map(([n, emotion]) => `${n} ${emotion}`).join(", ")}`);
    }

    function bars(k) {
      const probs = data.probs[data.main].slice(k * classes, (k + 1) * classes);
      const target = data.target.slice(k * classes, (k + 1) * classes);
      const label = target.indexOf(Math.max(...target));
      const words = data.emotions.map((emotion, c) => `${emotion}: raters ${share(target[c])}, predicted ${share(probs[c])}`);
      const box = make("div", { class: "bars", role: "img", "aria-label": words.join("; ") });
      data.emotions.forEach((emotion, c) => {
        const rated = make("i", { class: "rated" }), predicted = make("i");
        rated.style.height = `${(target[c] / 1000) * 34}px`;
        predicted.style.height = `${(probs[c] / 1000) * 34}px`;
        if (!target[c]) rated.style.border = "0";
        const column = make("div", { class: c === label ? "class top" : "class", title: words[c] },
          make("div", { class: "pair2" }, rated, predicted), make("span", {}, emotion));
        box.append(column);
      });
      return box;
    }

    function allHeads(k) {
      const line = (name, values, from) => make("tr", {}, make("th", { scope: "row" }, said(name)),
        ...data.emotions.map((_, c) => make("td", {}, share(values[from + c]))));
      const table = make("table", {},
        make("tr", {}, make("th", {}), ...data.emotions.map((emotion) => make("th", { scope: "col" }, said(emotion)))),
        line("raters", data.target, k * classes),
        ...data.heads.map((head, h) => line(head, data.probs[h], k * classes)));
      const weights = data.experts.map((expert, m) => `${expert} ${share(data.weights[m][k])}`).join(", ");
      return make("div", {}, table, weights ? make("p", { class: "note" }, `Expert weights: ${weights}`) : "");
    }

    function player(k) {
      if (!data.audio || data.audio.clip[k] < 0) return [];
      const audio = make("audio", { controls: "", preload: "none", src: data.audio.uris[data.audio.clip[k]] });
      const begin = data.audio.start[k], length = data.audio.duration[k];
      if (begin !== null) {
        audio.addEventListener("play", () => { if (audio.currentTime < begin) audio.currentTime = begin; });
        if (length !== null) audio.addEventListener("timeupdate", () => { if (audio.currentTime >= begin + length) { audio.pause(); audio.currentTime = begin; } });
      }
      return [audio];
    }

    update();
  }

  document.querySelectorAll("[data-utterances]").forEach(start);
})();
