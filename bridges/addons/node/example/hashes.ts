/**
 * The program of the test: node dist/example/hashes.js ADDRESS SEED FRAMES
 *
 * Prints the SHA-256 of the first frame of a session and of each after an action. Now and then it lets go of its
 * connection while a step is under way, once when the host has drawn the frame and the answer is lost.
 */

import { createHash } from "node:crypto";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";

import { Client, type Frame } from "../src/index.js";

const [address, seed = "0", frames = "300"] = process.argv.slice(2);
const DROPS = new Map<number, number | "lost">([[50, 0], [100, 1], [150, 3], [200, 8], [250, "lost"]]); // frame: after ms

/** Actions by a plain rule that every language can follow. */
function* drive(count: number, x: number): Generator<number> {
  for (let i = 0; i < count; i++) {
    x = (Math.imul(1103515245, x) + 12345) & 0x7fffffff;
    yield (x >> 16) & 1;
  }
}

const digest = (frame: Frame) => createHash("sha256").update(frame.data).digest("hex");

const client = await Client.connect(address, { name: "hashes" });
const session = await client.open({ seed: Number(seed), prompt: "a cart" });
const hashes = [digest(session.last.frame)];
for (const action of drive(Number(frames), Number(seed))) {
  const stepped = session.step({ action });
  const drop = DROPS.get(hashes.length);
  if (drop === "lost") {
    await turn(); // now it is with libzmq
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200); // the answer comes, and nobody looks at it
    client.connection.reconnect();
  } else if (drop !== undefined) {
    await sleep(drop);
    client.connection.reconnect();
  }
  hashes.push(digest((await stepped).frame));
}
await session.close();
client.close();
console.log(hashes.join("\n"));
console.error(`sent again: ${client.connection.resends}`);
