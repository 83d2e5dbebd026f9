"use strict";
// The page of serve-emotion. Whatever comes from elsewhere, names, words and answers, is put in as text, never as markup.

const by = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const NAMES = { audio: "Voice", text: "Words", video: "Face", fusion: "Fusion" };
// the colours that most people expect; other emotions get what is left
const USUAL = [["neutral"], ["happy", "happiness", "joy"], ["sad", "sadness"], ["angry", "anger"], ["disgust"], ["fear"],
  ["contempt"], ["surprise"], ["excited", "excitement"], ["frustrated", "frustration"]];
// no recording may hold the page up by drawing it at every row, in milliseconds
const DRAW_EVERY = 400;

let about = null;
// emotion → class
let colours = {};
// {blob, name} of what is to be heard
let speech = null;
// {emotions, note, count, rows} of the last answer
let answer = null;
let selected = 0;
let request = null;
let waiting = null;
let recorder = null;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const titleOf = (head) => head.split(":").map((part, k) => (k ? part : NAMES[part] || part)).join(" ");
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const bits = (value) => `${value.toFixed(2)} bits`;
const exact = (value, words) => make("data", { value: String(value) }, words);

function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  return whole < 3600 ? parts.join(":") : [Math.floor(whole / 3600), ...parts].join(":");
}

// Emotion → class, so that no two of up to ten are alike.
function coloured(emotions) {
  const usual = emotions.map((emotion) => USUAL.findIndex((names) => names.includes(emotion.toLowerCase())));
  const left = USUAL.map((_, place) => place).filter((place) => !usual.includes(place));
  return Object.fromEntries(emotions.map((emotion, k) => [emotion, `e${usual[k] >= 0 ? usual[k] : left.shift() ?? k % 10}`]));
}

// --- what the page is about ---

async function begin() {
  try {
    const reply = await fetch("about");
    if (!reply.ok) throw new Error(reply.statusText);
    about = await reply.json();
  } catch {
    by("about").textContent = "";
    fail("The server cannot be reached. Is it still running? Reload the page when it is.");
    return;
  }
  colours = coloured(about.emotions);
  const reads = [...new Set(Object.values(about.reads))].map((name) => (NAMES[name] || name).toLowerCase());
  const encoders = Object.values(about.encoders).join(" and ");
  const members = about.members > 1 ? `, ${about.members} models together` : "";
  by("about").textContent = `${about.system}${members}, from ${reads.join(" and ")}, by ${encoders}: ${about.emotions.join(", ")}`;
  by("speech").hidden = !about.listens;
  by("said").hidden = !(about.transcribes || Object.values(about.reads).includes("text"));
  by("words").maxLength = about.limits.characters;
  by("words-help").textContent = about.transcribes
    ? "What is said. Left empty, a recogniser hears it."
    : `What is said. Of recordings over ${about.windows.whole_seconds_with_words} s, only the voice is judged.`;
  if (!(navigator.mediaDevices && window.MediaRecorder)) {
    by("record").disabled = true;
    by("no-record").textContent = "This browser records only on localhost or over https. Files can be chosen all the same.";
    by("no-record").hidden = false;
  }
  settle();
}

// --- what is to be predicted ---

function choose(blob, name) {
  if (blob.size > about.limits.megabytes * 1e6) {
    fail(`${name} has ${Math.round(blob.size / 1e6)} MB, more than the ${about.limits.megabytes} that are taken.`);
    return;
  }
  clear();
  by("result").hidden = true;
  speech = { blob, name };
  URL.revokeObjectURL(by("player").src);
  by("player").src = URL.createObjectURL(blob);
  by("chosen-name").textContent = name;
  settle();
}

function remove() {
  by("result").hidden = true;
  speech = null;
  URL.revokeObjectURL(by("player").src);
  by("player").removeAttribute("src");
  by("file").value = "";
  settle();
}

// What can be pressed now.
function settle() {
  const isBusy = request !== null || waiting !== null;
  by("chosen").hidden = speech === null;
  by("predict").disabled = isBusy || recorder !== null || about === null || (speech === null && !by("words").value.trim());
  by("stop").hidden = !isBusy;
  if (!isBusy) by("progress").hidden = true;
}

function fail(line) {
  by("error").textContent = line;
  by("error").hidden = false;
}

function clear() {
  by("error").hidden = true;
  by("status").textContent = by("count").textContent = "";
}

// --- recording ---

async function record() {
  clear();
  let stream;
  try {
    // as it is: what cleans speech for calls changes what encoders hear
    stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false } });
  } catch (problem) {
    const isRefused = problem.name === "NotAllowedError";
    fail(isRefused ? "The browser does not let this page hear the microphone." : "No microphone was found.");
    return;
  }
  const parts = [];
  const own = new MediaRecorder(stream);
  const began = performance.now();
  const ticking = setInterval(() => {
    const seconds = (performance.now() - began) / 1000;
    by("record-words").textContent = `Stop ${clock(seconds)}`;
    if (seconds >= about.limits.seconds && own.state === "recording") own.stop();
  }, 250);
  own.ondataavailable = (event) => parts.push(event.data);
  own.onstop = () => {
    clearInterval(ticking);
    stream.getTracks().forEach((track) => track.stop());
    recorder = null;
    by("record").setAttribute("aria-pressed", "false");
    by("record-words").textContent = "Record";
    const kind = (own.mimeType || "audio/webm").split(";")[0];
    choose(new Blob(parts, { type: kind }), `recording.${kind.split("/")[1]}`);
    settle();
  };
  remove();
  recorder = own;
  own.start(1000);
  by("record").setAttribute("aria-pressed", "true");
  by("record-words").textContent = "Stop 00:00";
  settle();
}

// --- asking ---

function ask() {
  clear();
  by("result").hidden = true;
  const query = new URLSearchParams();
  const words = by("words").value.trim();
  if (words && !by("said").hidden) query.set("text", words);
  if (speech) query.set("name", speech.name);
  const own = new XMLHttpRequest();
  const progress = by("progress");
  let read = 0;
  let drawn = 0;
  request = own;
  const fresh = { emotions: [], note: null, count: 0, rows: [] };
  // Lines of JSON, as far as they have come.
  const take = () => {
    const text = own.responseText;
    for (let end = text.indexOf("\n", read); end >= 0; end = text.indexOf("\n", read)) {
      const line = JSON.parse(text.slice(read, end));
      read = end + 1;
      if (line.emotions) Object.assign(fresh, line);
      else if (line.heads || "file" in line) fresh.rows.push(line);
      else if (line.error) fail(line.error);
    }
  };
  own.open("POST", `predict?${query}`);
  own.setRequestHeader("Accept", "application/x-ndjson");
  own.upload.onprogress = (event) => {
    if (!event.lengthComputable) return;
    progress.max = event.total;
    progress.value = event.loaded;
    by("count").textContent = `${(event.loaded / 1e6).toFixed(1)} of ${(event.total / 1e6).toFixed(1)} MB`;
  };
  own.upload.onload = () => {
    progress.removeAttribute("value");
    by("status").textContent = "Predicting …";
    by("count").textContent = "";
  };
  own.onprogress = () => {
    if (own.status !== 200) return;
    take();
    if (fresh.count < 2 || performance.now() - drawn < DRAW_EVERY) return;
    drawn = performance.now();
    progress.max = fresh.count;
    progress.value = fresh.rows.length;
    by("count").textContent = `${fresh.rows.length} of ${fresh.count} windows`;
    if (fresh.rows.length) show(fresh);
  };
  own.onload = () => {
    over();
    if (own.status === 200) {
      take();
      finish(fresh);
    } else if (own.status === 503 && own.getResponseHeader("Retry-After")) {
      again(Number(own.getResponseHeader("Retry-After")), lineOf(own));
    } else {
      fail(lineOf(own));
    }
  };
  own.onerror = () => {
    over();
    fail("The server cannot be reached, or broke off.");
  };
  own.onabort = () => {
    over();
    by("status").textContent = "Stopped.";
  };
  progress.hidden = false;
  progress.removeAttribute("value");
  by("status").textContent = speech ? "Sending …" : "Predicting …";
  settle();
  own.send(speech ? speech.blob : null);
}

// What a refusal says.
function lineOf(own) {
  try {
    return JSON.parse(own.responseText).error;
  } catch {
    return `The server answers ${own.status} ${own.statusText}.`;
  }
}

function over() {
  request = null;
  by("status").textContent = by("count").textContent = "";
  settle();
}

// A busy server is asked again by itself.
function again(seconds, line) {
  const until = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    if (left <= 0) {
      clearInterval(waiting);
      waiting = null;
      ask();
    } else {
      by("count").textContent = `${left} s`;
    }
  };
  by("status").textContent = `${line.split(":")[0]}. Trying again in a moment.`;
  waiting = setInterval(tick, 250);
  tick();
  settle();
}

function stop() {
  if (request) request.abort();
  if (waiting === null) return;
  clearInterval(waiting);
  waiting = null;
  clear();
  by("status").textContent = "Stopped.";
  settle();
}

// --- showing ---

function finish(fresh) {
  const good = fresh.rows.filter((row) => row.error === null);
  if (!good.length) {
    if (fresh.rows.length) fail(fresh.rows[0].error);
    return;
  }
  show(fresh);
  const text = JSON.stringify({ emotions: fresh.emotions, note: fresh.note, rows: fresh.rows }, null, 2);
  URL.revokeObjectURL(by("save").href);
  by("save").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  by("save").hidden = false;
  by("status").textContent = "Done.";
}

function show(fresh) {
  if (answer !== fresh) {
    answer = fresh;
    selected = 0;
    by("windows").tBodies[0].replaceChildren();
    by("save").hidden = true;
  }
  const isCourse = answer.count > 1;
  by("result").hidden = false;
  by("note").hidden = !answer.note;
  by("note").textContent = answer.note || "";
  by("course").hidden = by("all").hidden = !isCourse;
  if (isCourse) {
    by("window").max = answer.rows.length - 1;
    tabulate();
  }
  select(Math.min(selected, answer.rows.length - 1));
}

function select(place) {
  selected = place;
  const row = answer.rows[place];
  if (answer.count > 1) {
    const words = `${clock(row.start)} – ${clock(row.end)}`;
    by("window").value = place;
    by("window").setAttribute("aria-valuetext", words);
    by("window-time").textContent = words;
    plot();
    const rows = by("windows").tBodies[0].rows;
    for (const other of by("windows").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
    if (rows[place]) rows[place].setAttribute("aria-current", "true");
  }
  by("detail").replaceChildren(...(row.error === null ? detail(row) : [make("p", {}, row.error)]));
}

function detail(row) {
  const said = row.heads[row.predicted_by];
  const share = exact(said[row.label], percent(said[row.label]));
  const most = Math.log2(answer.emotions.length);
  const cards = [
    card("Rater ambiguity", row.rater_ambiguity, most, "How split people would be about it: 0 where all agree, "
      + `${most.toFixed(2)} where each emotion has the same share. It is no doubt of the model's.`),
    card("Modality ambiguity", row.modality_ambiguity, 1, row.modality_ambiguity === null
      ? "How differently voice and words speak. Here one of them alone was judged."
      : "How differently voice and words speak: 0 where both say the same, 1 where they share nothing."),
  ];
  const heads = Object.keys(row.heads).sort((a, b) => rank(row, a) - rank(row, b));
  return [
    make("p", { class: "answer", id: "label" }, row.label),
    make("p", { class: "muted" }, share, ` of the raters, by the ${titleOf(row.predicted_by).toLowerCase()} head`),
    make("div", { class: "cards" }, ...cards),
    facts(row),
    make("div", { class: "heads" }, ...heads.map((head) => bars(head, row))),
  ];
}

const rank = (row, head) => (head === row.predicted_by ? 0 : head === "fusion" ? 1 : 2);

function card(title, value, most, words) {
  const fill = make("i");
  fill.style.width = `${(100 * Math.min(1, (value || 0) / most)).toFixed(1)}%`;
  const number = value === null ? "–" : exact(value, bits(value));
  return make("div", { class: "card" }, make("h3", {}, make("span", {}, title), make("span", {}, number)),
    make("span", { class: "track", "aria-hidden": "true" }, fill), make("p", {}, words));
}

function facts(row) {
  const pairs = [["Judged", row.inputs.map(titleOf).join(" and ").toLowerCase()]];
  if (row.trusted_expert !== null) pairs.push(["Trusted expert", `${titleOf(row.trusted_expert).toLowerCase()}, the nearest to what is predicted`]);
  if (row.ensemble_spread !== null) pairs.push(["Ensemble spread", `${row.ensemble_spread.toFixed(3)} bits, by which the models differ`]);
  if ("transcript" in row) pairs.push(["Words, as a recogniser heard them", row.transcript || "none"]);
  const heard = answer.count > 1 ? `${clock(row.start)} – ${clock(row.end)}` : `${(row.end || 0).toFixed(1)} s of ${row.file}`;
  if (row.end !== null) pairs.push(["Heard", `${heard}${row.short_window ? ", shorter than the other windows" : ""}`]);
  return make("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function bars(head, row) {
  const own = row.heads[head];
  const top = answer.emotions.reduce((a, b) => (own[b] > own[a] ? b : a));
  const lines = answer.emotions.map((emotion) => {
    const fill = make("span", { class: `fill ${colours[emotion]}` });
    fill.style.width = `${(100 * own[emotion]).toFixed(1)}%`;
    return make("tr", { class: emotion === top ? "top" : "" }, make("th", { scope: "row", title: emotion }, emotion),
      make("td", { "aria-hidden": "true" }, fill), make("td", { class: "n" }, exact(own[emotion], percent(own[emotion]))));
  });
  const caption = make("caption", {}, titleOf(head));
  if (head === row.predicted_by) caption.append(" ", make("span", {}, "what is predicted"));
  return make("table", { "data-head": head }, caption, make("tbody", {}, ...lines));
}

function tabulate() {
  const table = by("windows");
  const titles = ["Time", "Emotion", "Share", "Rater ambiguity", "Modality ambiguity", "Trusted expert"];
  if (!table.tHead.rows[0].cells.length) {
    table.tHead.rows[0].append(...titles.map((title) => make("th", { scope: "col" }, title)));
  }
  const body = table.tBodies[0];
  for (const row of answer.rows.slice(body.rows.length)) {
    const place = body.rows.length;
    const time = make("button", { type: "button" }, `${clock(row.start)} – ${clock(row.end)}`);
    time.onclick = () => select(place);
    const cells = row.error !== null ? [make("td", { class: "why", colspan: "5" }, row.error)] : [
      row.label, exact(row.heads[row.predicted_by][row.label], percent(row.heads[row.predicted_by][row.label])),
      bits(row.rater_ambiguity), row.modality_ambiguity === null ? "–" : bits(row.modality_ambiguity),
      row.trusted_expert === null ? "–" : titleOf(row.trusted_expert).toLowerCase(),
    ].map((value) => make("td", {}, value));
    body.append(make("tr", {}, make("td", {}, time), ...cells));
  }
}

// --- the course of the distribution: a column for each window from where it begins to where the next one does ---

const MARGIN = { left: 44, right: 8, top: 6, middle: 22, bottom: 20 };
const HIGH = { shares: 170, bits: 56 };

function plot() {
  const width = Math.max(260, by("chart").clientWidth);
  const { seconds, hop } = about.windows;
  const isWhole = answer.rows.length === answer.count;
  const end = isWhole ? answer.rows[answer.rows.length - 1].end : (answer.count - 1) * hop + seconds;
  const x = (time) => MARGIN.left + (time / end) * (width - MARGIN.left - MARGIN.right);
  const until = (k) => (k + 1 < answer.rows.length ? answer.rows[k + 1].start : answer.rows[k].end);
  const below = MARGIN.top + HIGH.shares + MARGIN.middle;
  const height = below + HIGH.bits + MARGIN.bottom;
  const parts = [...axes(width, below, end, x), ...columns(x, until), ...lines(x, until, below)];
  const row = answer.rows[selected];
  parts.push(draw("rect", { class: "mark", x: x(row.start), y: MARGIN.top, width: Math.max(1, x(until(selected)) - x(row.start)), height: HIGH.shares }));
  const label = `Shares of ${answer.emotions.join(", ")} over ${clock(end)}; the table below has the numbers`;
  by("chart").replaceChildren(draw("svg", { role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`, height }, ...parts));
  by("legend").replaceChildren(...answer.emotions.map((emotion) => make("span", {}, make("i", { class: colours[emotion] }), emotion)));
  by("chart").onclick = (event) => {
    const time = ((event.clientX - by("chart").getBoundingClientRect().left - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * end;
    let place = 0;
    answer.rows.forEach((one, k) => { if (one.start <= time) place = k; });
    select(place);
  };
}

function axes(width, below, end, x) {
  const most = Math.log2(answer.emotions.length);
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].find((one) => (end / one) * 80 <= width) || 7200;
  const floor = below + HIGH.bits;
  const found = [[MARGIN.top, "100 %"], [MARGIN.top + HIGH.shares / 2, "50 %"], [MARGIN.top + HIGH.shares, "0"],
    [below, `${most.toFixed(1)} bits`], [floor, "0"]].flatMap(([y, words]) => [
    draw("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
    draw("text", { x: MARGIN.left - 5, y: y + 4, "text-anchor": "end" }, words),
  ]);
  for (let time = 0; time <= end + 1e-6; time += step) {
    const anchor = time === 0 ? "start" : x(time) > width - 24 ? "end" : "middle";
    found.push(draw("text", { x: x(time), y: floor + 16, "text-anchor": anchor }, clock(time)));
  }
  const hasTwo = answer.rows.some((row) => row.error === null && row.modality_ambiguity !== null);
  const words = hasTwo ? "rater ambiguity (line) and modality ambiguity (dashes)" : "rater ambiguity";
  return [...found, draw("text", { x: MARGIN.left, y: below - 7 }, words)];
}

function columns(x, until) {
  const paths = answer.emotions.map(() => []);
  answer.rows.forEach((row, k) => {
    if (row.error !== null) return;
    const [left, right] = [x(row.start), x(until(k))];
    let above = MARGIN.top;
    answer.emotions.forEach((emotion, place) => {
      const high = row.heads[row.predicted_by][emotion] * HIGH.shares;
      paths[place].push(`M${left.toFixed(2)} ${above.toFixed(2)}H${right.toFixed(2)}v${high.toFixed(2)}H${left.toFixed(2)}z`);
      above += high;
    });
  });
  return paths.map((path, place) => draw("path", { class: colours[answer.emotions[place]], d: path.join("") }));
}

function lines(x, until, below) {
  const most = Math.log2(answer.emotions.length);
  return [["rater", "rater_ambiguity"], ["modality", "modality_ambiguity"]].map(([kind, name]) => {
    let path = "";
    let isOn = false;
    answer.rows.forEach((row, k) => {
      const isThere = row.error === null && row[name] !== null;
      if (isThere) {
        const y = (below + HIGH.bits * (1 - row[name] / most)).toFixed(2);
        path += `${isOn ? "L" : "M"}${x(row.start).toFixed(2)} ${y}H${x(until(k)).toFixed(2)}`;
      }
      isOn = isThere;
    });
    return draw("path", { class: kind, d: path });
  });
}

// --- the controls ---

by("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!by("predict").disabled) ask();
});
by("words").addEventListener("input", settle);
by("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("form").requestSubmit();
});
by("file").addEventListener("change", () => by("file").files.length && choose(by("file").files[0], by("file").files[0].name));
by("remove").addEventListener("click", remove);
by("stop").addEventListener("click", stop);
by("record").addEventListener("click", () => (recorder ? recorder.stop() : record()));
by("window").addEventListener("input", () => select(Number(by("window").value)));
addEventListener("resize", () => answer && answer.count > 1 && plot());
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    by("speech").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file && about && about.listens) choose(file, file.name);
  });
}
begin();
