// The protocol of docs/protocol.md over a WebSocket: requests that are sent again until they are answered.
//
// A message is [u32 length][header as JSON][u32 length][buffer]..., little-endian.

const TIMEOUT = 5000; // ms without a reply, after which a request is sent again over a new connection
const LONGEST_PAUSE = 5000; // ms between two tries to connect

// What the host says is wrong; `code` is one of the protocol's.
export class HostError extends Error {
  constructor({ code, message, ...more }) {
    super(message);
    this.code = code;
    this.more = more;
  }
}

export class Client {
  // url: of the WebSocket. token: by which the host knows this client again.
  // hooks: greeted(hello) on every new connection, push(message), away(why).
  constructor(url, token, hooks) {
    Object.assign(this, { url, token, hooks, pending: new Map(), tries: 0, online: false });
    this.id = Date.now() * 1000; // larger than any id of this client before a reload, and below 2^53
    this.connect();
  }

  // Ask; what comes is the reply, or a HostError. While there is no connection it waits.
  call(verb, fields = {}) {
    const header = { v: 1, id: ++this.id, verb, ...fields };
    return new Promise((resolve, reject) => {
      const request = { header, resolve, reject };
      this.pending.set(header.id, request);
      if (this.online) this.send(request);
    });
  }

  connect() {
    clearTimeout(this.again);
    const socket = (this.socket = new WebSocket(this.url));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.greet();
    socket.onmessage = (event) => this.receive(unpack(event.data));
    socket.onclose = (event) => this.lost(event.reason || "There is no connection.");
    this.watchdog = setTimeout(() => this.lost("There is no connection."), 2 * TIMEOUT);
  }

  // The connection is of no use any more: try another one, each time after a longer pause.
  lost(why) {
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
    clearTimeout(this.watchdog);
    for (const request of this.pending.values()) clearTimeout(request.timer);
    for (const [id, request] of this.pending) if (request.header.verb === "hello") this.pending.delete(id);
    this.online = false;
    const pause = Math.min(LONGEST_PAUSE, 250 * 2 ** this.tries++) * (0.75 + Math.random() / 2);
    this.again = setTimeout(() => this.connect(), pause);
    this.hooks.away(why);
  }

  greet() {
    this.online = false;
    const header = { v: 1, id: ++this.id, verb: "hello", client: this.token, name: "browser" };
    const resolve = ({ header: hello }) => {
      clearTimeout(this.watchdog);
      this.online = true;
      this.tries = 0;
      for (const request of this.pending.values()) this.send(request); // in the order they were asked
      this.hooks.greeted(hello);
    };
    const request = { header, resolve, reject: (error) => this.lost(error.message) };
    this.pending.set(header.id, request);
    this.send(request);
  }

  send(request) {
    clearTimeout(request.timer);
    request.timer = setTimeout(() => this.lost("The host does not answer."), TIMEOUT);
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(pack(request.header));
  }

  receive(message) {
    const { id, verb, error } = message.header;
    const request = this.pending.get(id);
    if (verb === "frame" || verb === "bye") return this.hooks.push(message);
    if (!request) return; // an answer that came twice
    clearTimeout(request.timer);
    if (error?.code === "hello-first") return this.greet();
    if (error?.code === "too-fast" || error?.code === "stopping") {
      request.timer = setTimeout(() => this.online && this.send(request), 1000 * (error.wait ?? 0.25));
      return;
    }
    this.pending.delete(id);
    if (error) request.reject(new HostError(error));
    else request.resolve(message);
  }
}

function pack(header) {
  const json = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(4 + json.length);
  new DataView(bytes.buffer).setUint32(0, json.length, true);
  bytes.set(json, 4);
  return bytes;
}

// A message's header, and its buffers by name: each has what the header says of it, and `bytes`.
function unpack(data) {
  const view = new DataView(data);
  const parts = [];
  for (let place = 0; place < data.byteLength; ) {
    const length = view.getUint32(place, true);
    parts.push(new Uint8Array(data, place + 4, length));
    place += 4 + length;
  }
  const header = JSON.parse(new TextDecoder().decode(parts.shift()));
  const buffers = {};
  for (const about of header.buffers ?? []) {
    buffers[about.name] = about.encoding === "shm" ? about : { ...about, bytes: parts.shift() };
  }
  return { header, buffers };
}
