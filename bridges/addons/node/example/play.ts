/**
 * A world in the terminal: node dist/example/play.js [ADDRESS] [WORLD] [PROMPT]
 *
 * Arrow keys or WASD play, Tab types a prompt, R begins anew, Q ends it.
 */

import { Client, LOCAL, type Frame } from "../src/index.js";

const HOLD = 500; // milliseconds: a terminal does not say when a key is let go, only that it is pressed again
const ARROWS: Record<string, string> = { "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left" };
const LETTERS: Record<string, string> = { w: "up", a: "left", s: "down", d: "right", " ": "space" };

const [address = LOCAL, world, prompt] = process.argv.slice(2);
const { stdin, stdout } = process;
if (!stdin.isTTY || !stdout.isTTY) {
  console.error("play needs a terminal; example/hashes.ts does without.");
  process.exit(1);
}

/** A frame as lines of half blocks, two pixels above each other in each character, as large as fits. */
function draw({ width, height, data }: Frame, columns: number, rows: number): string {
  const fit = Math.min(columns / width, (2 * rows) / height);
  const scale = fit >= 1 ? Math.floor(fit) : fit;
  const pixel = (x: number, y: number): string => {
    const at = 3 * (Math.min(height - 1, Math.floor(y / scale)) * width + Math.floor(x / scale));
    return data.subarray(at, at + 3).join(";");
  };
  let text = "";
  for (let y = 0; y < Math.floor(height * scale); y += 2) {
    for (let x = 0; x < Math.floor(width * scale); x++) {
      text += `\x1b[38;2;${pixel(x, y)};48;2;${pixel(x, y + 1)}m\u2580`;
    }
    text += "\x1b[0m\x1b[K\r\n";
  }
  return text;
}

const client = await Client.connect(address, { name: "terminal player" });
const session = await client.open({ world: world ?? client.hello.worlds[0]?.name, seed: Date.now(), prompt });
const about = client.hello.worlds.find(({ name }) => name === session.world);
const known = new Set(Object.keys(about?.keys ?? {}).flatMap((keys) => keys.split("+")));

const leaving = new AbortController();
const held = new Map<string, number>(); // key: until when
let sent = "";
let typed: string | undefined; // the prompt, while it is typed
let note = "";

/** A request that nobody waits for. */
function ask(request: Promise<unknown>): void {
  request.then(
    () => (note = ""),
    (error: Error) => (note = error.message),
  );
}

function hold(): void {
  const now = Date.now();
  const keys = [...held].filter(([, until]) => until > now).map(([key]) => key).join("+");
  if (keys !== sent) ask(session.input({ keys: (sent = keys) }));
}

function type(text: string): void {
  if (text === "\r") {
    if (typed) ask(session.prompt(typed));
    typed = undefined;
  } else if (text === "\x1b") typed = undefined;
  else if (text === "\x7f") typed = typed?.slice(0, -1);
  else if (text >= " ") typed += text;
}

function press(text: string): void {
  if (text === "\x03") return leaving.abort();
  if (typed !== undefined) return type(text);
  const key = ARROWS[text] ?? LETTERS[text] ?? text;
  if (text === "q") {
    leaving.abort();
  } else if (text === "r") {
    ask(session.reset({ seed: Date.now() }));
    sent = ""; // a session that begins anew holds nothing
  } else if (text === "\t") {
    typed = "";
  } else if (known.size ? known.has(key) : Object.values(ARROWS).includes(key)) {
    held.delete(key); // what was pressed last comes last
    held.set(key, Date.now() + HOLD);
    hold();
  }
}

stdin.setRawMode(true).setEncoding("utf8").on("data", (text: string) => {
  if (typed !== undefined && !text.startsWith("\x1b")) for (const one of text) press(one); // pasted
  else press(text);
});
stdout.write("\x1b[?1049h\x1b[?25l"); // a screen of its own, without a cursor
const holding = setInterval(hold, 50);
let problem: unknown;
try {
  await session.run();
  for await (const seen of session.frames({ signal: leaving.signal })) {
    const over = seen.terminated || seen.truncated ? "  over, R begins anew" : "";
    const line = typed === undefined ? `${seen.prompt}  ${sent}  ${note}${over}` : `prompt: ${typed}_`;
    const columns = stdout.columns ?? 80;
    stdout.write(`\x1b[H${draw(seen.frame, columns, (stdout.rows ?? 24) - 1)}${line.slice(0, columns - 1)}\x1b[K\x1b[J`);
  }
} catch (error) {
  if (!leaving.signal.aborted) problem = error;
} finally {
  clearInterval(holding);
  stdout.write("\x1b[?25h\x1b[?1049l");
  stdin.setRawMode(false).pause();
}
if (problem === undefined) await session.close();
client.close();
if (problem !== undefined) throw problem;
