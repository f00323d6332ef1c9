-- Worlds that a worldsim host draws, stepped from LÖVE 11 through libzmq. One file; docs/protocol.md has the protocol.
--
-- Nothing here waits: requests go out and come back in `client:update()`, which love.update calls. A request takes a
-- function that is called with the reply, or with nil and a problem {code, message}; without one it is put into the
-- session's own fields. `client:finish(request)` waits, for programs without a game loop.

local ffi = require "ffi"

local worldsim = { LOCAL = "tcp://127.0.0.1:5570" }

local VERSION = 1
local PASSING = { ["too-fast"] = true, stopping = true } -- errors that go away by themselves
local BREAK = 0.1 -- seconds before the next try, where the host does not say
local MOST_INTEGER = 2 ^ 53 -- numbers are doubles

-- JSON

local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }
local MEANINGS = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }
local CONSTANTS = { ["true"] = true, ["false"] = false } -- null is nil, as the protocol means it

local function quote(text)
  return '"' .. text:gsub('[%c"\\]', function(c) return ESCAPES[c] or ("\\u%04x"):format(c:byte()) end) .. '"'
end

-- A table with a first entry is a list, any other an object.
local function encode(value)
  local kind = type(value)
  if kind == "string" then return quote(value) end
  if kind == "boolean" then return tostring(value) end
  if kind == "number" then
    if value ~= value or math.abs(value) == math.huge then error("JSON has no " .. value) end
    if value % 1 ~= 0 then return ("%.17g"):format(value) end
    if math.abs(value) >= MOST_INTEGER then error(("%.0f: integers stay below 2^53"):format(value)) end
    return ("%.0f"):format(value)
  end
  if kind ~= "table" then error("JSON has no " .. kind) end
  local parts = {}
  if value[1] ~= nil then
    for i, entry in ipairs(value) do parts[i] = encode(entry) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  for name, entry in pairs(value) do parts[#parts + 1] = quote(name) .. ":" .. encode(entry) end
  return "{" .. table.concat(parts, ",") .. "}"
end

local function utf8(code)
  if code < 0x80 then return string.char(code) end
  local bytes, most = {}, 0x40
  while code >= most do
    table.insert(bytes, 1, string.char(0x80 + code % 0x40))
    code, most = math.floor(code / 0x40), #bytes == 1 and 0x20 or most / 2
  end
  return string.char(256 - 2 * most + code) .. table.concat(bytes)
end

local function unquote(text)
  text = text:gsub("\\(.)(%x?%x?%x?%x?)", function(c, digits)
    if c == "u" then return utf8(tonumber(digits, 16)) end
    return MEANINGS[c] .. digits
  end)
  return (text:gsub("\237([\160-\175])(.)\237([\176-\191])(.)", function(...) -- two halves of one character
    local a, b, c, d = table.concat({ ... }):byte(1, 4)
    return utf8(0x10000 + ((a - 160) * 64 + b - 128) * 1024 + (c - 176) * 64 + d - 128)
  end))
end

-- Each takes the text and where to begin, and gives a value and where it ended.
local decode_value

local function decode_string(text, at)
  local stop = at
  repeat
    stop = assert(text:find('["\\]', stop + 1), "a string without an end")
    local escape = text:sub(stop, stop) == "\\"
    if escape then stop = stop + 1 end
  until not escape
  return unquote(text:sub(at + 1, stop - 1)), stop + 1
end

local function decode_all(text, at, close, each)
  at = text:match("^%s*()", at + 1)
  if text:sub(at, at) == close then return at + 1 end
  while true do
    at = text:match("^%s*()", each(at))
    local mark = text:sub(at, at)
    if mark == close then return at + 1 end
    assert(mark == ",", "a comma is missing")
    at = text:match("^%s*()", at + 1)
  end
end

function decode_value(text, at)
  at = text:match("^%s*()", at)
  local mark = text:sub(at, at)
  if mark == '"' then return decode_string(text, at) end
  local made, count = {}, 0
  if mark == "{" then
    return made, decode_all(text, at, "}", function(i)
      local name, colon = decode_string(text, i)
      made[name], i = decode_value(text, assert(text:match("^%s*:()", colon), "a colon is missing"))
      return i
    end)
  end
  if mark == "[" then
    return made, decode_all(text, at, "]", function(i)
      count = count + 1
      made[count], i = decode_value(text, i)
      return i
    end)
  end
  local word = text:match("^%a+", at)
  if word then return CONSTANTS[word], at + #word end
  word = assert(text:match("^[%d%.eE+-]+", at), "not JSON")
  return tonumber(word), at + #word
end

worldsim.encode = encode
function worldsim.decode(text) return (decode_value(text, 1)) end

-- libzmq

ffi.cdef [[
  typedef struct { unsigned char hidden[64] __attribute__((aligned(8))); } zmq_msg_t;
  void *zmq_ctx_new(void);
  int zmq_ctx_term(void *context);
  void *zmq_socket(void *context, int type);
  int zmq_close(void *socket);
  int zmq_setsockopt(void *socket, int option, const void *value, size_t size);
  int zmq_connect(void *socket, const char *address);
  int zmq_send(void *socket, const void *buffer, size_t size, int flags);
  int zmq_msg_init(zmq_msg_t *message);
  int zmq_msg_recv(zmq_msg_t *message, void *socket, int flags);
  void *zmq_msg_data(zmq_msg_t *message);
  size_t zmq_msg_size(const zmq_msg_t *message);
  int zmq_msg_more(const zmq_msg_t *message);
  int zmq_msg_close(zmq_msg_t *message);
  int zmq_curve_keypair(char *public_key, char *secret_key);
  int zmq_errno(void);
  const char *zmq_strerror(int number);
]]

local DEALER, DONTWAIT, SNDMORE = 5, 1, 2
local LINGER, RECONNECT_IVL, RECONNECT_IVL_MAX, RCVTIMEO = 17, 18, 21, 27
local CURVE = { public = 48, secret = 49, server = 50 }
local NAMES = { "libzmq.so.5", "zmq", "libzmq", "libzmq.5.dylib", "/opt/homebrew/lib/libzmq.5.dylib", "libzmq-mt-4_3_5" }

local function load_zmq()
  local folder = love.filesystem.getSourceBaseDirectory() -- where the game lies
  for _, name in ipairs(NAMES) do
    for _, path in ipairs { name, folder .. "/" .. name .. (ffi.os == "Windows" and ".dll" or "") } do
      local found, library = pcall(ffi.load, path)
      if found then return library end
    end
  end
  error("libzmq is missing: install libzmq5 (Debian), zeromq (Homebrew), or put libzmq.dll beside the game.")
end

local zmq = load_zmq()

local function check(result)
  if result == -1 or result == nil then error(ffi.string(zmq.zmq_strerror(zmq.zmq_errno())), 3) end
  return result
end

local function set(socket, option, value)
  if type(value) == "string" then return check(zmq.zmq_setsockopt(socket, option, value, #value)) end
  return check(zmq.zmq_setsockopt(socket, option, ffi.new("int[1]", value), 4))
end

-- The parts of the next message as strings, or nil where none comes.
local function receive(socket, message, flags)
  local parts = {}
  repeat
    zmq.zmq_msg_init(message)
    if zmq.zmq_msg_recv(message, socket, flags) == -1 then return nil end
    parts[#parts + 1] = ffi.string(zmq.zmq_msg_data(message), zmq.zmq_msg_size(message))
    local more = zmq.zmq_msg_more(message) == 1
    zmq.zmq_msg_close(message)
  until not more
  return parts
end

local function random_token()
  local key, secret = ffi.new("char[41]"), ffi.new("char[41]")
  zmq.zmq_curve_keypair(key, secret) -- from the system's own random numbers; zeros where libzmq has no CURVE
  local seed = { ffi.string(key, 41), tostring(key), os.time(), love.timer.getTime() }
  return love.data.encode("string", "hex", love.data.hash("sha256", table.concat(seed))):sub(1, 32)
end

-- Client

local Client, Session = {}, {}
Client.__index, Session.__index = Client, Session

-- Settings: name, timeout (seconds without a reply after which a request is sent again over a new connection),
-- patience (seconds after which it is given up), curve = {public, secret, server} where the host has keys.
function worldsim.connect(address, settings)
  settings = settings or {}
  local client = setmetatable({
    address = address or worldsim.LOCAL,
    name = settings.name or "worldsim.lua",
    timeout = settings.timeout or 5,
    patience = settings.patience or 60,
    curve = settings.curve or {},
    hello = nil, -- what the host said of itself and its worlds
    resends = 0, -- requests that were sent again
    token = random_token(),
    ids = 0,
    waiting = {}, -- requests without a reply, oldest first
    watched = {}, -- sessions, by token
    message = ffi.new "zmq_msg_t",
    context = check(zmq.zmq_ctx_new()),
  }, Client)
  client:reconnect()
  return client
end

-- Go on over a new connection; what is under way is sent again.
function Client:reconnect()
  if self.socket then zmq.zmq_close(self.socket) end
  local socket = check(zmq.zmq_socket(self.context, DEALER))
  self.socket = socket
  set(socket, LINGER, 0)
  set(socket, RECONNECT_IVL, 50)
  set(socket, RECONNECT_IVL_MAX, 1000)
  for name, key in pairs(self.curve) do set(socket, CURVE[name], key) end
  check(zmq.zmq_connect(socket, self.address))
  self.greeted, self.greeting = false, nil
  for _, request in ipairs(self.waiting) do request.sent = nil end
end

-- Ask. `done` is called with the reply, or with nil and a problem.
function Client:call(verb, fields, done)
  local request = self:_request(verb, fields)
  request.done = done
  request.over = love.timer.getTime() + self.patience
  table.insert(self.waiting, request)
  self:_send_all()
  return request
end

-- Take in what has come, waiting some seconds for it where they are given, and send again what got lost.
function Client:update(seconds)
  set(self.socket, RCVTIMEO, math.ceil(1000 * (seconds or 0)))
  local socket = self.socket
  local parts = receive(socket, self.message, seconds and 0 or DONTWAIT)
  while parts do
    self:_take(parts)
    if self.socket ~= socket then break end
    parts = receive(socket, self.message, DONTWAIT)
  end
  self:_give_up()
  self:_send_all()
  for _, session in pairs(self.watched) do session:_watch_on() end
end

-- Wait for a request's reply, or nil and a problem.
function Client:finish(request)
  while not request.answered do self:update(0.05) end
  return request.reply, request.problem
end

-- Begin a session: fields of `open`. It can be used when its request is done, and `done` gets it.
function Client:open(fields, done)
  return self:call("open", fields, self:_opens(done))
end

-- A session whose token one knows, from an earlier run or as the second player.
function Client:attach(token, done)
  return self:call("render", { session = token }, self:_opens(done, token))
end

-- Let go, when what was asked is answered or a second is over. Sessions live on until their leases end.
function Client:close()
  local stop = love.timer.getTime() + 1
  while self.waiting[1] and love.timer.getTime() < stop do self:update(0.05) end
  zmq.zmq_close(self.socket)
  zmq.zmq_ctx_term(self.context)
end

function Client:_opens(done, token)
  return function(reply, problem, request)
    if not reply then return done and done(nil, problem) end
    local session = setmetatable({ client = self, token = token or reply.session, watch_token = reply.watch }, Session)
    session.world = reply.world
    session:_see(reply)
    request.reply = session
    if done then done(session) end
  end
end

function Client:_request(verb, fields)
  self.ids = self.ids + 1
  local header = { v = VERSION, id = self.ids, verb = verb }
  for name, value in pairs(fields) do header[name] = value end
  return { id = self.ids, header = encode(header) }
end

function Client:_send(request)
  zmq.zmq_send(self.socket, request.header, #request.header, DONTWAIT) -- if it fails it is sent again in a while
  request.sent = love.timer.getTime()
end

function Client:_send_all()
  local now = love.timer.getTime()
  if not self.greeted then
    if not self.greeting and now >= (self.quiet or 0) then
      self.greeting = self:_request("hello", { client = self.token, name = self.name })
      self:_send(self.greeting)
    end
    return
  end
  for _, request in ipairs(self.waiting) do
    if not request.sent and now >= (request.quiet or 0) then
      if request.tried then self.resends = self.resends + 1 end
      request.tried = true
      self:_send(request)
    end
  end
end

function Client:_give_up()
  local now = love.timer.getTime()
  for _, request in ipairs { unpack(self.waiting) } do
    if now >= request.over then
      local words = ("the host at %s has not answered for %g s; is it running?"):format(self.address, self.patience)
      self:_done(request, nil, { code = "no-answer", message = words })
    end
  end
  local late = self.greeting and now - self.greeting.sent > self.timeout
  for _, request in ipairs(self.waiting) do late = late or request.sent and now - request.sent > self.timeout end
  if late then self:reconnect() end -- the old connection may be dead without knowing
end

function Client:_take(parts)
  local read, reply = pcall(worldsim.decode, parts[1])
  if not read or type(reply) ~= "table" then return end -- nothing that a host says
  reply.parts = {}
  for i, about in ipairs(reply.buffers or {}) do
    reply.parts[about.name] = { encoding = about.encoding, shape = about.shape, data = parts[i + 1] }
  end
  if reply.verb == "frame" then
    local session = self.watched[reply.session]
    if session then session:_take(reply) end
  elseif reply.verb == "bye" then
    if self.on_bye then self.on_bye(reply.resume) end
  elseif self.greeting and reply.id == self.greeting.id then
    self:_greeted(reply)
  else
    for _, request in ipairs(self.waiting) do
      if request.id == reply.id then return self:_answered(request, reply) end
    end
  end
end

function Client:_greeted(reply)
  self.greeting = nil
  if not reply.error then
    self.hello, self.greeted = reply, true
    for _, session in pairs(self.watched) do session.taken = nil end -- a new connection watches nothing yet
  elseif PASSING[reply.error.code] then
    self.quiet = love.timer.getTime() + (reply.error.wait or BREAK)
  else -- it will not talk to this client
    for _, request in ipairs { unpack(self.waiting) } do self:_done(request, nil, reply.error) end
    self.quiet = love.timer.getTime() + self.timeout
  end
end

function Client:_answered(request, reply)
  local code = reply.error and reply.error.code
  if code == "hello-first" then
    self.greeted, request.sent = false, nil
  elseif PASSING[code] then
    request.sent, request.quiet = nil, love.timer.getTime() + (reply.error.wait or BREAK)
  else
    self:_done(request, not code and reply or nil, reply.error)
  end
end

function Client:_done(request, reply, problem)
  for i, other in ipairs(self.waiting) do
    if other == request then table.remove(self.waiting, i) end
  end
  request.answered, request.reply, request.problem = true, reply, problem
  if request.done then request.done(reply, problem, request) end
end

-- Session: token, watch_token, world, and of the last frame: step_count, prompt, reward, ended, terminated, truncated,
-- frame = {width, height, data}, with data a string of RGB bytes, row by row.

-- Draw the next frame: {action = ...} or {keys = "left+up"}. Wait for it before the next.
function Session:step(control, done)
  return self:_call("step", { step = self.step_count, action = control.action, keys = control.keys }, done)
end

-- Begin anew: {seed, prompt, start, guidance}.
function Session:reset(opening, done) return self:_call("reset", opening, done) end

-- Condition the frames from now on.
function Session:say(prompt, done) return self:_call("prompt", { prompt = prompt }, done) end

-- Have the host keep the session; the reply's `snapshot` is for `restore`.
function Session:snapshot(done) return self:_call("snapshot", {}, done) end

function Session:restore(snapshot, done) return self:_call("restore", { snapshot = snapshot }, done) end

-- The last frame again.
function Session:render(done) return self:_call("render", {}, done) end

-- A twin, for `done`: under the same actions it draws the same frames. Settings: {seed = other noise}.
function Session:fork(settings, done)
  settings = settings or {}
  return self.client:call("fork", { session = self.token, seed = settings.seed }, self.client:_opens(done))
end

-- Start the clock: the host draws at a pace, under what `input` said last.
function Session:run(fps, done) return self:_call("run", { fps = fps }, done) end

function Session:pause(done) return self:_call("pause", {}, done) end

-- Hold {action = ...} or {keys = "left+up"} until the next input.
function Session:input(control, done)
  return self:_call("input", { action = control.action, keys = control.keys }, done)
end

-- Have every frame pushed; `on_frame` is called with the session for each. At most `credits` are on their way.
function Session:watch(on_frame, credits)
  self.on_frame, self.credits, self.taken = on_frame, credits or 8, nil
  self.client.watched[self.token] = self
end

function Session:unwatch(done)
  self.client.watched[self.token] = nil
  return self:_call("unwatch", {}, done)
end

function Session:close(done)
  self.client.watched[self.token] = nil
  return self:_call("close", {}, done)
end

-- The frame as love.image ImageData; into `image_data` where it has the size.
function Session:image_data(image_data)
  local frame = self.frame
  if not image_data or image_data:getWidth() ~= frame.width or image_data:getHeight() ~= frame.height then
    image_data = love.image.newImageData(frame.width, frame.height)
  end
  local to, from = ffi.cast("uint8_t *", image_data:getFFIPointer()), ffi.cast("const uint8_t *", frame.data)
  for i = 0, frame.width * frame.height - 1 do
    to[4 * i], to[4 * i + 1], to[4 * i + 2], to[4 * i + 3] = from[3 * i], from[3 * i + 1], from[3 * i + 2], 255
  end
  return image_data
end

function Session:_call(verb, fields, done)
  local asked = { session = self.token }
  for name, value in pairs(fields or {}) do asked[name] = value end
  return self.client:call(verb, asked, function(reply, problem, request)
    if reply then self:_see(reply) end
    if done then done(reply, problem, request) end
  end)
end

function Session:_see(reply)
  local raw = reply.parts.frame
  if raw then
    self.frame = { height = raw.shape[1], width = raw.shape[2], data = raw.data }
    self.reward, self.ended = reply.reward or 0, reply.ended or 0
    self.terminated, self.truncated = reply.terminated or false, reply.truncated or false
  end
  self.step_count, self.prompt = reply.step or self.step_count, reply.prompt or self.prompt
end

function Session:_take(pushed)
  self.taken = (self.taken or 0) + 1
  self.heard = love.timer.getTime()
  self:_see(pushed)
  if self.on_frame then self.on_frame(self) end
end

-- Give credits: all of them to a connection that watches nothing, else as many as were used.
function Session:_watch_on()
  local now, more = love.timer.getTime(), nil
  if not self.taken then
    more = self.credits
  elseif self.taken >= self.credits / 2 then
    more = self.taken
  elseif now - self.heard > self.client.timeout then
    more = 0 -- finds out whether the host is still there
  end
  if not more or not self.client.greeted then return end
  self.taken, self.heard = 0, now
  self.client:call("watch", { session = self.token, credits = more }, function(_, problem)
    if problem then
      self.client.watched[self.token] = nil
      if self.client.on_problem then self.client.on_problem(problem) end
    end
  end)
end

return worldsim
