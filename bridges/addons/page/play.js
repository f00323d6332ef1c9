// The page: one session of one world, played, watched or shared. What it may do, the token in the address says:
// #session= (owner; with watch=, the token to share), #play= (second player) or #watch=.

import { Client, HostError } from "./client.js";

const QUALITY = 95; // of JPEG: these pixels are looked at one by one
const CREDITS = 8; // frames that may be on their way here
const SNAPSHOTS = 30; // one a second, to go back
const BACK = 250; // ms between two steps back
const ARROWS = { left: "\u2190", up: "\u2191", right: "\u2192", down: "\u2193" };
const LETTERS = { w: "up", a: "left", s: "down", d: "right" }; // unless the world has a use for them
const CODES = {
  ArrowLeft: "left", ArrowUp: "up", ArrowRight: "right", ArrowDown: "down", Space: "space", Enter: "return", Tab: "tab",
  ShiftLeft: "left shift", ShiftRight: "right shift", ControlLeft: "left ctrl", ControlRight: "right ctrl",
  AltLeft: "left alt",
};
const WORDS = {
  full: "The host has no room for another session. Try again later.",
  "no-session": "This session is over.",
  "no-snapshot": "There is nothing left to go back to.",
};

const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), stage = $("stage"), pen = canvas.getContext("2d");
const mine = { session: null, watch: null, role: null, world: null, step: 0, prompt: "", fps: 0 };
const held = []; // keys, in the order they were pressed
let worlds = [], names = [], snapshots = [], picture = {}; // picture: how frames shall come
let wanted = false; // whether the clock shall run
let fresh = false; // whether it has not run yet: then any key starts it
let started = false; // whether a session was begun or joined
let rewinding = null, snapping = false, steered = null, times = [], shown = 0, asked = 0, quiet = 0;

const client = new Client(address(), remembered("client", () => secret()), {
  greeted, away: (why) => state("away", why),
  push({ header, buffers }) {
    if (header.verb === "bye") state("away", header.resume ? "The host stops; it may come back." : "The host has stopped.");
    else if (header.session === mine.session) framed(header, buffers);
  },
});

// A connection, and a session.

async function greeted(hello) {
  state("online", "Connected");
  ({ worlds } = hello);
  picture = hello.encodings.includes("jpeg") ? { encoding: "jpeg", quality: QUALITY } : { encoding: "raw" };
  $("world").replaceChildren(...worlds.map(({ name }) => new Option(name, name)));
  try {
    if (!started) await begin();
    else if (mine.session) await join();
  } catch (error) {
    failed(error);
  }
}

async function begin() {
  started = true;
  const given = new URLSearchParams(location.hash.slice(1));
  mine.session = given.get("session") ?? given.get("play") ?? given.get("watch");
  mine.role = given.has("session") || !mine.session ? "owner" : "watcher"; // until the host says
  mine.watch = given.has("session") ? given.get("watch") : null;
  if (!mine.session) return open(worlds[0].name);
  wanted = sessionStorage.getItem(`running ${mine.session}`) === "yes";
  snapshots = JSON.parse(sessionStorage.getItem(`snapshots ${mine.session}`) ?? "[]");
  await join();
}

async function open(world) {
  const old = mine.role === "owner" ? mine.session : null;
  const { header, buffers } = await client.call("open", { world, seed: chance(), ...picture });
  if (old) client.call("close", { session: old }).catch(() => {});
  for (const { token } of snapshots.splice(0)) client.call("drop", { snapshot: token }).catch(() => {});
  Object.assign(mine, { session: header.session, watch: header.watch, fps: 0 });
  wanted = false;
  fresh = true;
  history.replaceState(null, "", `#session=${mine.session}&watch=${mine.watch}`);
  await shows(header, buffers);
  await join();
}

// Come to a session: after the page was opened, and on every new connection.
async function join() {
  const session = mine.session;
  const { header, buffers } = await client.call("render", { session, ...picture });
  if (session !== mine.session) return;
  Object.assign(mine, { role: header.role, world: worlds.find(({ name }) => name === header.world) });
  dress();
  await shows(header, buffers);
  const watching = await client.call("watch", { session, credits: CREDITS, ...picture });
  mine.fps = watching.header.fps;
  if (mine.role !== "watcher") steer();
  if (mine.role === "owner" && wanted && !rewinding) await run();
  else refresh();
}

async function run() {
  wanted = true;
  fresh = false;
  sessionStorage.setItem(`running ${mine.session}`, "yes");
  mine.fps = (await client.call("run", { session: mine.session })).header.fps;
  refresh();
}

async function pause() {
  wanted = false;
  sessionStorage.setItem(`running ${mine.session}`, "no");
  const { header } = await client.call("pause", { session: mine.session });
  mine.fps = 0;
  mine.step = header.step;
  refresh();
  if (canvas.dataset.step < header.step) { // the last frame was not sent, as there was no credit for it
    const last = await client.call("render", { session: mine.session, ...picture });
    await shows(last.header, last.buffers);
  }
}

async function reset() {
  const { session, prompt } = mine;
  const { header, buffers } = await client.call("reset", { session, seed: chance(), prompt });
  await shows(header, buffers);
  steer(); // a new beginning holds nothing
}

// Frames.

async function framed(header, buffers) {
  quiet = performance.now();
  if (header.credits <= CREDITS / 2 && quiet - asked > 50) {
    asked = quiet;
    client.call("watch", { session: mine.session, credits: CREDITS - header.credits, ...picture }).catch(failed);
  }
  times = [...times.filter((time) => quiet - time < 1000), quiet];
  if (!mine.fps && mine.role !== "owner") mine.fps = mine.world.fps; // somebody has started the clock
  await shows(header, buffers);
  if (steered?.step !== undefined && header.step > steered.step) {
    $("latency").textContent = `${Math.round(performance.now() - steered.time)} ms`;
    steered = null;
  }
}

// Draw a frame, unless a later one was drawn while it was decoded.
let number = 0;
async function shows(header, buffers) {
  const turn = ++number;
  const { bytes, encoding: kind, shape } = buffers.frame;
  if (kind === "shm") { // a session that another program has opened
    const again = await client.call("render", { session: mine.session, ...picture });
    return shows(again.header, again.buffers);
  }
  const image = kind === "jpeg" ? await createImageBitmap(new Blob([bytes], { type: "image/jpeg" })) : raw(bytes, shape);
  if (turn < shown) return;
  shown = turn;
  if (canvas.width !== image.width || canvas.height !== image.height) {
    Object.assign(canvas, { width: image.width, height: image.height });
    fit();
  }
  if (image instanceof ImageBitmap) {
    pen.drawImage(image, 0, 0);
    image.close();
  } else pen.putImageData(image, 0, 0);
  mine.step = header.step;
  canvas.dataset.step = $("step").textContent = header.step;
  note(header.terminated ? "The episode has ended" : header.truncated ? "Time is up" : "");
  if (header.prompt !== undefined && header.prompt !== mine.prompt) {
    mine.prompt = header.prompt;
    if (document.activeElement !== $("prompt")) $("prompt").value = mine.prompt;
  }
}

function raw(bytes, [height, width]) {
  const image = new ImageData(width, height);
  for (let i = 0, j = 0; i < bytes.length; j++) image.data[j] = j % 4 === 3 ? 255 : bytes[i++];
  image.data[image.data.length - 1] = 255;
  return image;
}

// As large as fits, in whole screen pixels for each of the frame's, so that all are of one size.
function fit() {
  const dots = devicePixelRatio;
  const room = Math.min(stage.clientWidth / canvas.width, stage.clientHeight / canvas.height) * dots;
  const scale = Math.max(1, Math.floor(room)) / dots;
  canvas.style.width = `${canvas.width * scale}px`;
  canvas.style.height = `${canvas.height * scale}px`;
}
new ResizeObserver(fit).observe(stage);

// Keys, from a keyboard or from the screen.

function press(name) {
  if (held.includes(name)) return;
  held.push(name);
  steer();
  if (fresh && mine.role === "owner") run().catch(failed);
}

function release(name) {
  if (!held.includes(name)) return;
  held.splice(held.indexOf(name), 1);
  steer();
}

async function steer() {
  for (const button of document.querySelectorAll("#pad button")) {
    button.classList.toggle("down", held.includes(button.dataset.key));
  }
  if (!mine.session || mine.role === "watcher") return;
  const now = { time: performance.now() };
  steered = mine.fps ? now : null; // while the clock stands, no frame comes of it
  try {
    now.step = (await client.call("input", { session: mine.session, keys: held.join("+") })).header.step;
  } catch (error) {
    failed(error);
    if (error.code !== "bad-action" || !held.length) return;
    names = names.filter((name) => name !== held.at(-1)); // a key that means nothing here
    release(held.at(-1));
  }
}

// The name by which the world knows a key; none if it has no use for it.
function named(event) {
  const name = CODES[event.code] ?? event.key.toLowerCase();
  if (names.includes(name)) return name;
  return names.includes(LETTERS[name]) ? LETTERS[name] : null;
}

addEventListener("keydown", (event) => {
  if ($("dialog").open || event.target.matches("input, select") || event.metaKey) return;
  if (event.target.matches("button, a") && ["Enter", "Space", "Tab"].includes(event.code)) return;
  const name = named(event);
  const shortcut = !name && !event.ctrlKey && !event.altKey && mine.role === "owner";
  if (name && mine.role !== "watcher") press(name);
  else if (shortcut && event.key === "Backspace") rewind();
  else if (shortcut && !event.repeat && event.key.toLowerCase() === "p") act($("pause"));
  else if (shortcut && !event.repeat && event.key.toLowerCase() === "r") act($("reset"));
  else return;
  event.preventDefault();
});
addEventListener("keyup", (event) => {
  release(named(event));
  if (event.key === "Backspace") forward();
});
addEventListener("blur", () => {
  for (const name of [...held]) release(name);
  forward();
});

const fingers = new Map(); // pointer -> key: a thumb may slide from one to the next
function touch(event) {
  const over = event.type === "pointerup" || event.type === "pointercancel";
  if (event.type === "pointermove" && !fingers.has(event.pointerId)) return;
  const name = over ? null : document.elementFromPoint(event.clientX, event.clientY)?.closest("#pad button")?.dataset.key;
  const before = fingers.get(event.pointerId);
  if (over) fingers.delete(event.pointerId);
  else fingers.set(event.pointerId, name);
  if (before && before !== name && ![...fingers.values()].includes(before)) release(before);
  if (name) press(name);
  event.preventDefault();
}
$("pad").addEventListener("pointerdown", (event) => {
  event.target.releasePointerCapture?.(event.pointerId);
  touch(event);
});
for (const type of ["pointermove", "pointerup", "pointercancel"]) addEventListener(type, (event) => {
  if (fingers.has(event.pointerId)) touch(event);
});
$("pad").addEventListener("contextmenu", (event) => event.preventDefault());
addEventListener("pointerdown", (event) => event.pointerType === "touch" && pad(), { capture: true });

function pad() {
  $("pad").hidden = mine.role === "watcher" || !names.length;
}

// Going back: the clock stands, and snapshots are restored one after the other for as long as it is held.

setInterval(async () => {
  const last = snapshots.at(-1);
  if (mine.role !== "owner" || !mine.fps || !client.online || rewinding || snapping || mine.step <= last?.step) return;
  snapping = true;
  try {
    const { header } = await client.call("snapshot", { session: mine.session });
    snapshots.push({ token: header.snapshot, step: header.step });
    while (snapshots.length > SNAPSHOTS) await forget(snapshots.shift());
  } catch (error) {
    failed(error);
  }
  snapping = false;
  remember();
}, 1000);

async function rewind() {
  if (rewinding || mine.role !== "owner") return;
  if (!snapshots.length) return note("Nothing to go back to yet");
  const mark = (rewinding = {});
  const ran = wanted;
  $("rewind").classList.add("down");
  try {
    await pause();
    do {
      if (snapshots.length > 1 && snapshots.at(-1).step >= mine.step) forget(snapshots.pop());
      const { token } = snapshots.at(-1);
      const { header, buffers } = await client.call("restore", { session: mine.session, snapshot: token });
      await shows(header, buffers);
      await new Promise((done) => setTimeout(done, BACK));
    } while (rewinding === mark);
  } catch (error) {
    if (error.code === "no-snapshot") snapshots = [];
    failed(error);
  }
  rewinding = null;
  $("rewind").classList.remove("down");
  remember();
  if (ran) await run().catch(failed);
  refresh();
}

function forward() {
  if (rewinding) rewinding = {}; // ends the loop
}

const forget = ({ token }) => client.call("drop", { snapshot: token }).catch(() => {});
const remember = () => sessionStorage.setItem(`snapshots ${mine.session}`, JSON.stringify(snapshots));

// What the buttons do.

function act(button) {
  if (!button.disabled) button.click();
}

function when(id, what, type = "click") {
  $(id).addEventListener(type, async (event) => {
    event.preventDefault();
    try {
      await what(event);
    } catch (error) {
      failed(error);
    }
    if (event.detail) stage.focus({ preventScroll: true }); // clicked with a pointer: keys steer again
  });
}

when("play", async () => {
  if (mine.session) await run();
  else await open($("world").value);
  stage.focus({ preventScroll: true });
});
when("pause", () => (wanted ? pause() : run()));
when("reset", reset);
when("world", () => open($("world").value), "change");
when("prompt-form", async () => {
  const { header } = await client.call("prompt", { session: mine.session, prompt: $("prompt").value.trim() });
  mine.prompt = $("prompt").value = header.prompt;
  stage.focus({ preventScroll: true });
}, "submit");
when("surprise", () => {
  const { prompts } = mine.world;
  $("prompt").value = prompts[Math.floor(Math.random() * prompts.length)];
  $("prompt-form").requestSubmit();
});
when("fork", async () => {
  const { header } = await client.call("fork", { session: mine.session, ...picture });
  offer("A twin of this session", "It goes on from this very moment, and its owner plays it apart from this one.",
    location.search, `session=${header.session}&watch=${header.watch}`);
});
when("share", () => offer("Watch along", "Whoever has this link sees what you see, and cannot steer.", "", `watch=${mine.watch}`));
when("second", () => {
  offer("A second player", "Whoever has the link that you make here steers with you. A link from before ends.");
  const other = names.filter((name) => name === "up" || name === "down");
  $("parts").replaceChildren(...names.map((name) => {
    const label = document.createElement("label"), box = document.createElement("input");
    Object.assign(box, { type: "checkbox", value: name, checked: other.includes(name) });
    label.append(box, ` ${name}`);
    return label;
  }));
});
when("make", async () => {
  const mode = document.querySelector("[name=mode]:checked").value;
  const parts = [...document.querySelectorAll("#parts :checked")].map((box) => box.value);
  if (mode === "split" && !parts.length) return $("dialog-text").textContent = "Choose at least one key for them.";
  const how = mode === "turns" ? { every: Number($("every").value) || 1 } : { parts };
  const { header } = await client.call("share", { session: mine.session, mode, ...how });
  offer("A second player", "Whoever has this link steers with you, until you make another one.", "", `play=${header.player}`);
});
when("copy", async () => {
  $("link").select();
  try {
    await navigator.clipboard.writeText($("link").value);
  } catch {
    document.execCommand("copy"); // no clipboard without https
  }
  $("copy").textContent = "Copied";
});

$("rewind").addEventListener("pointerdown", rewind);
for (const type of ["pointerup", "pointercancel", "pointerleave"]) $("rewind").addEventListener(type, forward);
$("rewind").addEventListener("keydown", ({ code }) => ["Space", "Enter"].includes(code) && rewind());
$("rewind").addEventListener("keyup", forward);
$("rewind").addEventListener("contextmenu", (event) => event.preventDefault());
addEventListener("hashchange", () => location.reload());
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
addEventListener("pagehide", () => {
  if (mine.role === "owner" && mine.fps) client.call("pause", { session: mine.session }).catch(() => {}); // nobody looks
});

// A link for somebody else; without one, a question for how controls are shared. A link to show around has no password.
function offer(title, text, search, token) {
  $("dialog-title").textContent = title;
  $("dialog-text").textContent = token && !search && location.search ? `${text} They need the page's password too.` : text;
  $("how").hidden = Boolean(token);
  $("link-row").hidden = !token;
  $("copy").textContent = "Copy";
  $("link").value = $("follow").href = token ? `${location.origin}${location.pathname}${search}#${token}` : "";
  if (!$("dialog").open) $("dialog").showModal();
}

// What is shown.

// Everything that depends on who one is and on the world.
function dress() {
  const { role, world } = mine;
  names = [...new Set(Object.keys(world.keys).flatMap((combo) => combo.split("+")))].filter(Boolean);
  for (const element of document.querySelectorAll(".owner")) element.hidden = role !== "owner";
  for (const element of document.querySelectorAll(".steering")) element.hidden = role === "watcher";
  $("prompt-form").hidden ||= !world.prompts.length;
  $("prompts").replaceChildren(...world.prompts.map((words) => new Option(words, words)));
  $("world").value = world.name;
  $("world").disabled = worlds.length < 2;
  $("share").disabled = !mine.watch;
  const sideways = (name) => name === "left" || name === "right"; // one thumb steers, the other does the rest
  $("thumb").replaceChildren(...names.filter(sideways).map(key));
  $("other-thumb").replaceChildren(...names.filter((name) => !sideways(name)).map(key));
  $("keys").replaceChildren("Keys: ", ...names.flatMap((name) => [cap(ARROWS[name] ?? name), " "]));
  if (role === "owner") $("keys").append(cap("P"), " pause ", cap("R"), " reset ", cap("Backspace"), " hold to rewind");
  document.title = `${{ owner: "", player: "Second player: ", watcher: "Watching: " }[role]}${world.name} - worldsim`;
  if (matchMedia("(pointer: coarse)").matches) pad();
}

function key(name) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: ARROWS[name] ?? name, ariaLabel: name });
  button.dataset.key = name;
  button.tabIndex = -1; // for fingers; a keyboard has these keys
  return button;
}

function cap(text) {
  const element = document.createElement("kbd");
  element.textContent = text;
  return element;
}

function refresh() {
  $("pause").textContent = wanted ? "Pause" : "Run";
  $("play").hidden = mine.role !== "owner" || wanted || rewinding !== null;
  $("play-text").textContent = mine.session ? "Play" : "Begin anew";
  stage.dataset.running = mine.fps > 0;
}

function state(name, text) {
  $("state").dataset.state = name;
  $("state-text").textContent = text;
}

function note(text) {
  if ($("note").textContent !== text) $("note").textContent = text;
}

let hiding;
function failed(error) {
  if (!(error instanceof HostError)) console.error(error);
  $("error").textContent = WORDS[error.code] ?? error.message;
  clearTimeout(hiding);
  hiding = setTimeout(() => ($("error").textContent = ""), 8000);
  if (error.code !== "no-session") return;
  Object.assign(mine, { session: null, role: mine.role ?? "owner", fps: 0 });
  wanted = false;
  note(WORDS[error.code]);
  refresh();
}

// Twice a second: figures. Every two seconds: a request that renews the lease, and tells how far the host is.
setInterval(() => {
  const now = performance.now();
  times = times.filter((time) => now - time < 1000);
  $("fps").textContent = times.length || !mine.fps ? times.length : "\u2013";
  if (mine.role === "owner" || !mine.session || times.length) return;
  mine.fps = 0;
  note("It stands still until its owner goes on");
}, 500);
setInterval(async () => {
  if (!client.online || !mine.session) return;
  const { session } = mine;
  if (mine.fps && performance.now() - quiet > 2000) { // frames were left out on their way, or credits were
    quiet = performance.now();
    client.call("watch", { session, credits: CREDITS, ...picture }).catch(failed);
  }
  if (mine.role === "watcher") return;
  const begin = performance.now();
  try {
    await client.call("keep", { sessions: [session] });
    $("ping").textContent = `${(performance.now() - begin).toFixed(1)} ms`;
  } catch (error) {
    if (session === mine.session) failed(error);
  }
}, 2000);

// Small things.

function address() {
  const token = new URLSearchParams(location.search).get("token");
  const url = new URL(token ? `ws?token=${encodeURIComponent(token)}` : "ws", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.hash = "";
  return url.href;
}

function remembered(name, make) {
  const value = sessionStorage.getItem(name) ?? make();
  sessionStorage.setItem(name, value);
  return value;
}

function secret() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function chance() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
