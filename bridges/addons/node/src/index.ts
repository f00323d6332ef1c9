/** Worlds that a worldsim host draws, stepped from Node.js. */

import { Connection, type CallOptions, type Settings } from "./connection.js";
import type { Control, Drawing, Hello, Message, Opened, Opening, Part, Parts, Pushed, Token } from "./protocol.js";

export { Connection, readKeys, WorldsimError, type CallOptions, type CurveKeys, type Settings } from "./connection.js";
export type * from "./protocol.js";

export const LOCAL = "tcp://127.0.0.1:5570";

/** A picture: RGB bytes row by row where its encoding is "raw", a file where it is "jpeg" (without a size then). */
export interface Frame {
  encoding: "raw" | "jpeg";
  width: number;
  height: number;
  data: Uint8Array;
}

/** A session's last frame, and what came with it. */
export interface Seen {
  step: number;
  prompt: string;
  reward: number;
  ended: number;
  terminated: boolean;
  truncated: boolean;
  frame: Frame;
}

export interface Watched extends Seen {
  dropped: number;
}

export interface WatchOptions extends Drawing {
  /** Frames that may be on their way; 8 if not given. */
  credits?: number;
  signal?: AbortSignal;
}

/** A host, and the sessions one has there. */
export class Client {
  private constructor(readonly connection: Connection) {}

  /** Connect and say hello. */
  static async connect(address = LOCAL, settings: Settings = {}, options?: CallOptions): Promise<Client> {
    const connection = new Connection(address, settings);
    try {
      await connection.greet(options);
    } catch (error) {
      connection.close();
      throw error;
    }
    return new Client(connection);
  }

  /** What the host said of itself and its worlds. */
  get hello(): Hello {
    return this.connection.hello;
  }

  /** Begin a session, or go on from a snapshot. A clip to begin from lies in `buffers`. */
  async open(
    opening: Opening & Drawing & { world?: string; snapshot?: Token } = {},
    options?: CallOptions,
    buffers?: Parts,
  ): Promise<Session> {
    return new Session(this, await this.connection.call("open", opening, buffers, options));
  }

  /** A session whose token one knows, from an earlier run or as the second player. */
  async attach(token: Token, options?: CallOptions): Promise<Session> {
    const { header, buffers } = await this.connection.call("render", { session: token }, undefined, options);
    return new Session(this, { header: { ...header, session: token, watch: "" }, buffers });
  }

  /** Every frame of a session from now on, by its own token or by its `watch` token; once at a time for a token. */
  async *watch(token: Token, { credits = 8, signal, ...drawing }: WatchOptions = {}): AsyncGenerator<Watched, void> {
    const { connection } = this;
    const come: Message<Pushed>[] = [];
    let wake = () => {};
    let closed = false;
    let failure: { error: unknown } | undefined;
    const on = {
      frame: (message: Message) => {
        const pushed = message as Message<Pushed>;
        if (pushed.header.session === token) come.push(pushed);
        wake();
      },
      hello: () => wake(),
      close: () => {
        closed = true;
        wake();
      },
    };
    const abort = () => wake();
    const ask = (more: number) =>
      connection.call("watch", { session: token, credits: more, ...drawing }, undefined, { signal });
    const fail = (error: unknown) => {
      failure = { error };
      wake();
    };
    connection.events.on("frame", on.frame).on("hello", on.hello).on("close", on.close);
    signal?.addEventListener("abort", abort);
    let greetings = 0;
    let taken = 0;
    try {
      while (!closed) {
        signal?.throwIfAborted();
        if (failure) throw failure.error;
        const message = come.shift();
        if (message) {
          if (++taken >= credits / 2) {
            const more = taken;
            taken = 0;
            ask(more).catch(fail); // frames need not wait for the answer
          }
          yield { ...message.header, frame: picture(message.buffers) };
        } else if (greetings !== connection.greetings) {
          await ask(credits); // a new connection watches nothing yet
          greetings = connection.greetings;
        } else {
          let timer: NodeJS.Timeout | undefined;
          const quiet = await new Promise<boolean>((resolve) => {
            wake = () => resolve(false);
            timer = setTimeout(() => resolve(true), connection.timeout);
          });
          clearTimeout(timer);
          wake = () => {};
          if (quiet) await ask(0); // finds out whether the host is still there
        }
      }
    } finally {
      connection.events.off("frame", on.frame).off("hello", on.hello).off("close", on.close);
      signal?.removeEventListener("abort", abort);
      if (!closed) connection.call("unwatch", { session: token }).catch(() => {});
    }
  }

  /** Let the host forget a snapshot. */
  async drop(snapshot: Token, options?: CallOptions): Promise<void> {
    await this.connection.call("drop", { snapshot }, undefined, options);
  }

  /** Let go of the connection. Sessions that were not closed live on until their leases end. */
  close(): void {
    this.connection.close();
  }
}

/** One world that is being played. Wait for a request before the next one that draws. */
export class Session {
  /** Who knows it may do everything. */
  readonly token: Token;
  /** Who knows it may watch. */
  readonly watchToken: Token;
  readonly world: string;
  /** The last frame, and what came with it. */
  last: Seen;

  constructor(
    readonly client: Client,
    { header, buffers }: Message<Opened>,
  ) {
    const { session, watch, world, step, prompt } = header;
    this.token = session;
    this.watchToken = watch;
    this.world = world;
    this.last = { ...FRESH, step, prompt, frame: picture(buffers) };
  }

  /** Draw the next frame under an action, or under keys that are held. */
  async step(control: Control, options?: CallOptions): Promise<Seen> {
    const { prompt } = this.last;
    const { header, buffers } = await this.#call("step", { step: this.last.step, ...control }, options);
    const { step, reward, ended, terminated, truncated } = header;
    return (this.last = { step, prompt, reward, ended, terminated, truncated, frame: picture(buffers) });
  }

  /** Begin anew. */
  async reset(opening: Opening = {}, options?: CallOptions, buffers?: Parts): Promise<Seen> {
    const fields = { ...opening, session: this.token };
    return this.#now(await this.client.connection.call("reset", fields, buffers, options));
  }

  /** Go back to a snapshot, of this session or another one of the same world. */
  async restore(snapshot: Token, options?: CallOptions): Promise<Seen> {
    return this.#now(await this.#call("restore", { snapshot }, options));
  }

  /** The last frame again: where the session stands, whatever became of a request that was given up. */
  async render(options?: CallOptions): Promise<Seen> {
    return this.#now(await this.#call("render", {}, options));
  }

  /** Condition the frames from now on. */
  async prompt(words: string, options?: CallOptions): Promise<void> {
    const { header } = await this.#call("prompt", { prompt: words }, options);
    this.last = { ...this.last, prompt: header.prompt };
  }

  /** Have the host keep the session as it is now. */
  async snapshot(options?: CallOptions): Promise<Token> {
    return (await this.#call("snapshot", {}, options)).header.snapshot;
  }

  /** A twin: under the same actions it draws the same frames, unless it is given a seed. */
  async fork(settings: Drawing & { seed?: number } = {}, options?: CallOptions): Promise<Session> {
    return new Session(this.client, await this.#call("fork", settings, options));
  }

  /** Start the clock: the host draws at a pace, under what `input` said last. Gives frames a second. */
  async run(fps?: number, options?: CallOptions): Promise<number> {
    return (await this.#call("run", { fps }, options)).header.fps;
  }

  /** Stop the clock. */
  async pause(options?: CallOptions): Promise<void> {
    await this.#call("pause", {}, options);
    await this.render(options); // frames that were drawn meanwhile, watched or not
  }

  /** Hold an action, or keys, until the next one. */
  async input(control: Control, options?: CallOptions): Promise<void> {
    await this.#call("input", control, options);
  }

  /** Every frame from now on, drawn by `step` or by the clock; leave the loop to end it. */
  async *frames(options?: WatchOptions): AsyncGenerator<Watched, void> {
    for await (const seen of this.client.watch(this.token, options)) {
      if (seen.step > this.last.step) this.last = seen;
      yield seen;
    }
  }

  /** End it. */
  async close(options?: CallOptions): Promise<void> {
    await this.#call("close", {}, options);
  }

  #call<V extends "step" | "restore" | "render" | "prompt" | "snapshot" | "fork" | "run" | "pause" | "input" | "close">(
    verb: V,
    fields: object,
    options?: CallOptions,
  ) {
    return this.client.connection.call<V>(verb, { session: this.token, ...fields } as never, undefined, options);
  }

  #now({ header: { step, prompt }, buffers }: Message<{ step: number; prompt: string }>): Seen {
    return (this.last = { ...FRESH, step, prompt, frame: picture(buffers) });
  }
}

const FRESH = { reward: 0, ended: 0, terminated: false, truncated: false };

function picture(buffers: Parts): Frame {
  const { encoding, data, shape = [] } = buffers["frame"] as Part;
  const [height = 0, width = 0] = shape;
  return { encoding, width, height, data };
}
