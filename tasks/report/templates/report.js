"use strict";
const byId = id => document.getElementById(id);
const data = id => JSON.parse(byId(id).textContent);
const { thumbnails, stills, damage } = data("thumbnails");

// ---- videos: a clip's video gets its bytes when it scrolls near the window and loses them when it leaves, so that a page
// with hundreds of clips needs only a screenful of decoders
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
let paused = reduced.matches;
const near = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) isIntersecting ? load(target) : unload(target);
}, { rootMargin: "200px" });
function load(video) {
  const clip = video.dataset.clip;
  video.preload = "auto"; // shows the first frame even where videos are paused
  if (clip && !video.hasAttribute("src")) video.src = "data:video/mp4;base64," + thumbnails[clip];
  video.dataset.near = "";
  if (!paused) video.play().catch(() => {});
}
function unload(video) {
  delete video.dataset.near;
  video.pause();
  if (video.dataset.clip && video.hasAttribute("src")) { video.removeAttribute("src"); video.load(); }
}
function setUp(video) {
  if (video.dataset.clip) video.poster = "data:image/jpeg;base64," + stills[video.dataset.clip];
  video.muted = true;
  video.autoplay = false;
  video.controls = paused;
  video.addEventListener("click", () => { if (!video.controls) video.paused ? video.play() : video.pause(); });
  near.observe(video);
}
const pauseButton = byId("pause");
pauseButton.hidden = false;
function setPaused(value) {
  paused = value;
  pauseButton.setAttribute("aria-pressed", paused);
  pauseButton.textContent = paused ? "Play videos" : "Pause videos";
  for (const video of document.querySelectorAll("video")) {
    video.controls = paused;
    if (paused) video.pause(); else if ("near" in video.dataset) video.play().catch(() => {});
  }
}
pauseButton.addEventListener("click", () => setPaused(!paused));
reduced.addEventListener("change", () => setPaused(reduced.matches));
document.querySelectorAll("video").forEach(setUp);
setPaused(paused);

// ---- the listing of clips
const PAGE = 48;
const form = byId("search");
if (form) list(data("listing"));

function list({ columns, words, labels, scores }) {
  const fields = form.elements, grid = byId("clip-grid"), more = byId("more");
  const every = columns.id.map((_, row) => row);
  const word = (name, row) => words[name].values[words[name].at[row]];
  const text = every.map(row => [columns.caption[row], ...columns.captions[row].flat(), word("path", row), columns.id[row],
    ...labels.map(name => word(name, row)), ...(columns.reasons[row] ?? [])].join("\n").toLowerCase());
  const option = (select, value, label = value) => select.add(new Option(label, value));
  const reasons = new Map();
  for (const ofClip of columns.reasons) for (const reason of ofClip ?? []) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
  for (const [reason, count] of [...reasons].sort((a, b) => b[1] - a[1])) option(fields.reason, reason, `${reason} (${count})`);
  for (const name of ["split", "bucket", "source"]) {
    for (const value of [...words[name].values].filter(Boolean).sort()) option(fields[name], value);
    fields[name].parentElement.hidden = fields[name].length < 3;
  }
  const sortable = { length: every.map(row => columns.end[row] - columns.start[row]), ...scores };
  for (const name of Object.keys(sortable)) option(fields.sort, name);

  let matches = every, numShown = 0;
  function search() {
    const searched = fields.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { verdict, reason, split, bucket, source, sort, order } = Object.fromEntries(new FormData(form));
    const keep = { kept: true, dropped: false, open: null }[verdict];
    matches = every.filter(row => (!verdict || columns.keep[row] === keep)
      && (!reason || columns.reasons[row]?.includes(reason))
      && (!split || word("split", row) === split) && (!bucket || word("bucket", row) === bucket)
      && (!source || word("source", row) === source) && searched.every(part => text[row].includes(part)));
    if (sort) {
      const values = sortable[sort], sign = order === "up" ? 1 : -1;
      matches = matches.filter(row => values[row] !== null).sort((a, b) => sign * (values[a] - values[b]));
    }
    numShown = 0;
    for (const video of grid.querySelectorAll("video")) near.unobserve(video);
    grid.replaceChildren();
    page();
  }
  function page() {
    for (const row of matches.slice(numShown, numShown + PAGE)) grid.append(card(row));
    numShown = Math.min(matches.length, numShown + PAGE);
    more.hidden = numShown === matches.length;
    byId("num-found").textContent = `${matches.length.toLocaleString("en")} of ${every.length.toLocaleString("en")} clips`
      + (numShown < matches.length ? `, ${numShown} shown` : "");
  }
  function card(row) {
    const id = columns.id[row], keep = columns.keep[row], sort = fields.sort.value;
    const node = element("article", "card clip");
    if (thumbnails[id]) {
      const video = element("video");
      Object.assign(video, { loop: true, playsInline: true, preload: "none" });
      video.dataset.clip = id;
      video.setAttribute("aria-label", `clip ${id}`);
      setUp(video);
      node.append(video);
    } else node.append(element("div", "novideo", damage[id] ? `file ${damage[id]}` : "no preview"));
    const badges = element("div", "badges");
    if (keep !== null) badges.append(element("span", keep ? "badge ok" : "badge warn", keep ? "kept" : "dropped"));
    if (keep && word("split", row)) badges.append(element("span", "badge", word("split", row)));
    for (const reason of columns.reasons[row] ?? []) badges.append(element("span", "badge warn", reason));
    for (const name of labels) if (word(name, row)) badges.append(element("span", "badge", word(name, row)));
    const facts = element("div", "facts");
    facts.append(element("span", "any", word("path", row)),
      element("span", "", `${columns.start[row].toFixed(2)}–${columns.end[row].toFixed(2)} s`),
      element("span", "", `${columns.num_frames[row]} frames, ${columns.width[row]}×${columns.height[row]}`));
    if (sort && scores[sort]) facts.append(element("span", "limited", `${sort} ${number(scores[sort][row])}`));
    const inside = element("div", "words");
    inside.append(badges);
    if (columns.captions[row].length) for (const [kind, said] of columns.captions[row]) {
      const line = element("div", "caption", said);
      line.prepend(element("span", "badge", kind), " ");
      inside.append(line);
    } else if (columns.caption[row]) inside.append(element("div", "caption", columns.caption[row]));
    inside.append(facts, details(row, id));
    node.append(inside);
    return node;
  }
  function details(row, id) {
    const node = element("details"), names = Object.keys(scores).filter(name => scores[name][row] !== null);
    node.append(element("summary", "", names.length === 1 ? "1 score" : `${names.length} scores`));
    node.addEventListener("toggle", () => {
      if (node.childElementCount > 1) return;
      const pairs = element("dl");
      for (const name of names) pairs.append(element("dt", "", name), element("dd", "", number(scores[name][row])));
      if (word("bucket", row)) pairs.append(element("dt", "", "bucket"), element("dd", "", word("bucket", row)));
      pairs.append(element("dt", "", "clip"), element("dd", "", id));
      node.append(pairs);
    });
    return node;
  }
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("input", search);
  form.addEventListener("reset", () => setTimeout(search));
  more.addEventListener("click", () => {
    const before = numShown;
    page();
    grid.children[before]?.querySelector("summary")?.focus();
  });
  for (const link of document.querySelectorAll("[data-reason]")) {
    link.addEventListener("click", () => {
      form.reset();
      fields.reason.value = link.dataset.reason;
      search();
      byId("clips").scrollIntoView();
      fields.reason.focus({ preventScroll: true });
    });
  }
  search();
}
function element(tag, name = "", text = "") {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  return node;
}
function number(value) {
  return Math.abs(value) >= 10000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}
