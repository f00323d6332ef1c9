/** A connection to a host: requests that are sent again until they are answered. */

import { randomBytes } from "node:crypto";
import { EventEmitter } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import { Dealer } from "zeromq";

import { pack, unpack, type Hello, type Message, type Parts, type Problem, type Verb, type Verbs } from "./protocol.js";

const PASSING = new Set(["too-fast", "stopping"]); // errors that go away by themselves
const BREAK = 0.1; // seconds before the next try, where the host does not say

/** CURVE keys, 40 characters each; `readKeys` takes them from the files that `worldsim keys` writes. */
export interface CurveKeys {
  publicKey: string;
  secretKey: string;
  serverKey: string;
}

export interface Settings {
  /** Milliseconds without a reply after which a request is sent again, over a new connection; 5000 if not given. */
  timeout?: number;
  /** Milliseconds after which it is given up; 60000 if not given. */
  patience?: number;
  /** Of the program, for the host's log. */
  name?: string;
  /** For a host that has keys. */
  curve?: CurveKeys;
}

export interface CallOptions {
  /** Instead of the connection's own. */
  patience?: number;
  /** Ends the wait. What was asked may be done all the same: `render` tells where a session stands. */
  signal?: AbortSignal;
}

/** What the host refused, by the protocol's `code`; or "no-answer", or "closed". */
export class WorldsimError extends Error {
  readonly code: string;
  readonly details: Problem;

  constructor(problem: Problem) {
    super(`${problem.message} (${problem.code})`);
    this.name = "WorldsimError";
    this.code = problem.code;
    this.details = problem;
  }
}

/** The client's pair of keys and the host's public one, from their files. */
export function readKeys(secretFile: string, hostFile: string): CurveKeys {
  const find = (file: string, name: string): string => {
    const found = readFileSync(file, "utf8").match(new RegExp(`^\\s*${name}\\s*=\\s*"(.{40})"`, "m"));
    if (!found?.[1]) throw new WorldsimError({ code: "bad-key", message: `${file} has no ${name}` });
    return found[1];
  };
  return {
    publicKey: find(secretFile, "public-key"),
    secretKey: find(secretFile, "secret-key"),
    serverKey: find(hostFile, "public-key"),
  };
}

/** One ZeroMQ socket. When it is closed, what waits for an answer gets none. */
class Link {
  greeting?: Promise<Message | undefined>;
  #socket: Dealer;
  #waiting = new Map<number, (message?: Message) => void>();
  #sending: Promise<void> = Promise.resolve();

  constructor(address: string, curve: CurveKeys | undefined, push: (message: Message) => void) {
    this.#socket = new Dealer({ linger: 0, reconnectInterval: 50, reconnectMaxInterval: 1000 });
    if (curve) {
      this.#socket.curvePublicKey = curve.publicKey;
      this.#socket.curveSecretKey = curve.secretKey;
      this.#socket.curveServerKey = curve.serverKey;
    }
    try {
      this.#socket.connect(address);
    } catch (error) {
      this.#socket.close();
      throw error;
    }
    void this.#receive(push);
  }

  /** The answer to a request, or undefined where none comes in time. */
  ask(id: number, parts: (string | Uint8Array)[], milliseconds: number): Promise<Message | undefined> {
    return new Promise((resolve) => {
      const done = (message?: Message) => {
        clearTimeout(timer);
        this.#waiting.delete(id);
        resolve(message);
      };
      const timer = setTimeout(done, milliseconds);
      if (this.#socket.closed) return done();
      this.#waiting.set(id, done);
      // A socket takes one message at a time. One that it cannot take is sent again when the time is over.
      this.#sending = this.#sending.then(() => this.#socket.send(parts)).catch(() => {});
    });
  }

  close(linger = 0): void {
    this.#socket.linger = linger;
    this.#socket.close();
    for (const done of [...this.#waiting.values()]) done();
  }

  async #receive(push: (message: Message) => void): Promise<void> {
    for await (const parts of this.#socket) {
      const message = unpack(parts);
      if (!message) continue; // nothing that a host says
      const { id, verb } = message.header;
      if (verb === "frame" || verb === "bye") push(message);
      else this.#waiting.get(id)?.(message); // nobody waits for an answer that came late
    }
  }
}

/** Talks to a host. Requests may be under way at the same time. */
export class Connection {
  /** What the host said of itself and its worlds. */
  hello!: Hello;
  /** How often it was greeted: a watch lasts until the next greeting. */
  greetings = 0;
  /** How many requests were sent again. */
  resends = 0;
  /** "frame" and "bye" with what the host pushes, "hello" after each greeting, "close" at the end. */
  readonly events = new EventEmitter<{ frame: [Message]; bye: [Message]; hello: []; close: [] }>().setMaxListeners(0);

  readonly timeout: number;
  readonly patience: number;
  #client = randomBytes(24).toString("base64url");
  #ids = 0;
  #link?: Link;
  #closed = false;

  constructor(
    readonly address: string,
    readonly settings: Settings = {},
  ) {
    this.timeout = settings.timeout ?? 5000;
    this.patience = settings.patience ?? 60_000;
  }

  /** Say hello, without a request of one's own. */
  async greet(options?: CallOptions): Promise<void> {
    await this.#patiently(undefined, options);
  }

  /** Ask, and wait for the answer. The host does nothing twice, however often a request is sent. */
  async call<V extends Verb>(
    verb: V,
    fields: Verbs[V][0],
    buffers?: Parts,
    options?: CallOptions,
  ): Promise<Message<Verbs[V][1]>> {
    const id = ++this.#ids;
    const request = { id, parts: pack({ id, verb, ...fields }, buffers) };
    return this.#patiently(request, options) as Promise<Message<Verbs[V][1]>>;
  }

  /** Go on over a new connection; what is under way is sent again. */
  reconnect(): void {
    this.#link?.close();
    this.#link = undefined;
  }

  /** Let go. Sessions live on until their leases end. */
  close(): void {
    this.#closed = true;
    this.#link?.close(200); // what was said last still goes out
    this.events.emit("close");
  }

  async #patiently(request: { id: number; parts: (string | Uint8Array)[] } | undefined, options: CallOptions = {}) {
    const patience = options.patience ?? this.patience;
    const over = new AbortController();
    const stopped = new Promise<never>((_, reject) => {
      over.signal.addEventListener("abort", () => reject(over.signal.reason));
    });
    const message = `the host at ${this.address} has not answered for ${patience / 1000} s; is it running?`;
    const timer = setTimeout(() => over.abort(new WorldsimError({ code: "no-answer", message })), patience);
    const abort = () => over.abort(options.signal?.reason);
    options.signal?.addEventListener("abort", abort);
    if (options.signal?.aborted) abort();
    try {
      return await Promise.race([stopped, this.#ask(request, over.signal)]);
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", abort);
    }
  }

  async #ask(request: { id: number; parts: (string | Uint8Array)[] } | undefined, over: AbortSignal): Promise<Message> {
    for (let tries = 0; !over.aborted; ) {
      if (this.#closed) throw new WorldsimError({ code: "closed", message: "the connection was closed" });
      const link = (this.#link ??= this.#connect());
      const greeting = (link.greeting ??= this.#greet(link));
      let reply = await greeting;
      const greeted = reply && !reply.header.error;
      if (greeted && request && !over.aborted) {
        if (tries++) this.resends++;
        reply = await link.ask(request.id, request.parts, this.timeout);
      }
      if (over.aborted) break;
      if (!reply) {
        if (this.#link === link) this.reconnect(); // the old connection may be dead without knowing
        continue;
      }
      const error = reply.header.error;
      if (!error) return reply;
      if ((!greeted || error.code === "hello-first") && link.greeting === greeting) link.greeting = undefined;
      if (PASSING.has(error.code)) await sleep(1000 * ((error.wait as number | undefined) ?? BREAK));
      else if (error.code !== "hello-first") throw new WorldsimError(error);
    }
    throw over.reason;
  }

  #connect(): Link {
    return new Link(this.address, this.settings.curve, (message) => {
      this.events.emit(message.header.verb as "frame" | "bye", message);
    });
  }

  async #greet(link: Link): Promise<Message | undefined> {
    const id = ++this.#ids;
    const fields: Verbs["hello"][0] = { client: this.#client, name: this.settings.name ?? "worldsim-client (node)" };
    const reply = await link.ask(id, pack({ id, verb: "hello", ...fields }), this.timeout);
    if (reply && !reply.header.error) {
      this.hello = (reply as Message<Hello>).header;
      this.greetings++;
      this.events.emit("hello");
    }
    return reply;
  }
}
