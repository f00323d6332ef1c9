/** The protocol's messages as types, and how they become bytes. Names and meanings: docs/protocol.md. */

export const VERSION = 1;

export type Token = string;
export type Encoding = "raw" | "jpeg";

/** A number, nested lists, or an object for a Dict space. */
export type Action = number | Action[] | { [name: string]: Action };

/** What is done: an action, or the keys held, such as "left+up". */
export type Control = { action: Action } | { keys: string };

/** How a session begins. Seeds stay below 2^53: numbers here are doubles. */
export interface Opening {
  seed?: number;
  prompt?: string;
  start?: number | { frames: string; actions?: string | Action[] };
  guidance?: number;
}

export interface Drawing {
  encoding?: Encoding;
  quality?: number;
}

export interface World {
  name: string;
  frame_size: [height: number, width: number];
  fps: number;
  action_space: Record<string, unknown>;
  keys: Record<string, Action>;
  prompts: string[];
  starts: number;
  episode_steps: number | null;
  fingerprint: string;
}

export interface Hello {
  host: Token;
  software: string;
  worlds: World[];
  lease: number;
  limits: { sessions: number; snapshots: number; rate: number; message_bytes: number };
  encodings: string[];
}

export interface State {
  step: number;
  prompt: string;
}

export interface Opened extends State {
  session: Token;
  watch: Token;
  world: string;
}

export interface Drawn {
  step: number;
  reward: number;
  ended: number;
  terminated: boolean;
  truncated: boolean;
}

export interface Pushed extends Drawn {
  session: Token;
  prompt: string;
  credits: number;
  dropped: number;
}

export type Role = "owner" | "player" | "watcher";

interface Of {
  session: Token;
}

interface States {
  steps: number[];
  prompts: string[];
}

type None = Record<never, never>;

/** Of each verb the fields of the request and of the reply. */
export interface Verbs {
  hello: [{ client: Token; name?: string }, Hello];
  open: [Opening & Drawing & { world?: string; snapshot?: Token }, Opened];
  reset: [Of & Opening, State];
  step: [Of & { step: number; action?: Action; keys?: string }, Drawn];
  prompt: [Of & { prompt: string }, State];
  snapshot: [Of, { snapshot: Token; step: number }];
  restore: [Of & { snapshot: Token }, State];
  drop: [{ snapshot: Token }, None];
  fork: [Of & Drawing & { seed?: number }, Opened];
  render: [Of & Drawing, State & { role: Role; world: string }];
  close: [Of, None];
  keep: [{ sessions: Token[] }, None];
  stats: [None, { stats: Record<string, unknown> }];
  open_batch: [{ world?: string; openings: Opening[] }, States & { sessions: Token[]; world: string }];
  reset_batch: [{ sessions: Token[]; openings: Opening[] }, States];
  step_batch: [
    { sessions: Token[]; steps: number[]; actions?: Action[] },
    { steps: number[]; rewards: number[]; ended: number[]; terminated: boolean[]; truncated: boolean[] },
  ];
  close_batch: [{ sessions: Token[] }, None];
  watch: [Of & Drawing & { credits: number }, State & { role: Role; world: string; fps: number }];
  unwatch: [Of, None];
  run: [Of & { fps?: number }, State & { fps: number }];
  pause: [Of, State];
  input: [Of & { action?: Action; keys?: string }, { step: number }];
  share: [Of & { mode: "turns" | "split"; every?: number; parts?: (number | string)[] }, { player: Token }];
}

export type Verb = keyof Verbs;

/** A part of a message besides its header. `shape` and `dtype` belong to raw ones. */
export interface Part {
  encoding: Encoding;
  dtype?: string;
  shape?: number[];
  data: Uint8Array;
}

export type Parts = Record<string, Part>;

export interface Problem {
  code: string;
  message: string;
  [detail: string]: unknown;
}

export interface Header {
  id: number;
  verb: string;
  error?: Problem;
}

export interface Message<Fields = object> {
  header: Header & Fields;
  buffers: Parts;
}

/** A request as the parts of a ZeroMQ message. */
export function pack(header: object, buffers: Parts = {}): (string | Uint8Array)[] {
  const about = Object.entries(buffers).map(([name, { data: _, ...rest }]) => ({ name, ...rest }));
  const whole = about.length ? { v: VERSION, ...header, buffers: about } : { v: VERSION, ...header };
  const text = JSON.stringify(whole, (name, value) => {
    if (typeof value === "number" && !Number.isFinite(value)) throw new RangeError(`${name} is ${value}`);
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
      throw new RangeError(`${name} is ${value}; integers stay below 2^53`);
    }
    return value;
  });
  return [text, ...Object.values(buffers).map((part) => part.data)];
}

/** What the host says, or undefined where it makes no sense. */
export function unpack(parts: Uint8Array[]): Message | undefined {
  try {
    const header = JSON.parse(new TextDecoder().decode(parts[0]));
    const about: (Omit<Part, "data"> & { name: string })[] = header.buffers ?? [];
    const buffers: Parts = {};
    for (const [i, { name, ...rest }] of about.entries()) buffers[name] = { ...rest, data: parts[i + 1]! };
    return about.length === parts.length - 1 ? { header, buffers } : undefined;
  } catch {
    return undefined;
  }
}
