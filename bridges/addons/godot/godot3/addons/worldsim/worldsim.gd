extends Node
class_name WorldSim
# Plays worlds that a worldsim host draws. Speaks ZeroMQ by hand over TCP, so there is nothing to install.
#
# Every verb returns a Request at once. In a game, yield to it:
#     var reply = yield(session.step("left+up"), "finished")
# Where no main loop runs, use `wait`. What a host says and means: docs/protocol.md.
# A request whose answer is lost is sent again, with the same id and over a new connection; the host does nothing twice.

# A request was refused or given up; its `code` and `message` say why.
signal failed(request)
# The host stops. With `resume` it may come back with the same sessions; requests wait for it.
signal bye(resume)

enum { APART, DIALLING, GREETING, SHAKING, TALKING }

const VERSION = 1  # of the protocol
const CREDITS = 32  # frames that may be pushed before more are asked for
const PAUSE = 100  # milliseconds before another attempt

export(String) var address = "tcp://127.0.0.1:5570"
# Seconds without a reply after which a request is sent again, over a new connection.
export(float) var timeout = 5.0
# Seconds after which a request is given up: as long as a host may need to be started again.
export(float) var patience = 60.0
# Actions of the InputMap and the world's keys they stand for.
export(Dictionary) var keys = {
	"ui_left": "left", "ui_right": "right", "ui_up": "up", "ui_down": "down", "ui_select": "space"
}

# What the host said of itself and its worlds.
var hello = {}

var _client = Crypto.new().generate_random_bytes(24).hex_encode()  # how the host knows us again
var _tcp = StreamPeerTCP.new()
var _stage = APART
var _dial_at = -1  # milliseconds; -1 where no connection is wanted
var _since = 0  # when the stage began
var _in = PoolByteArray()
var _out = PoolByteArray()
var _parts = []  # of a message that is not complete
var _last_id = 0
var _pending = {}  # requests without an answer, by id
var _sessions = {}  # open ones, by token
var _hello = null  # the request of this connection
var _greeted = false


# What was asked, and what became of it.
class Request:
	extends Reference

	signal finished(request)

	var verb = ""
	var done = false
	var code = ""  # Empty if all went well, else one of the protocol's error codes.
	var message = ""
	var fields = {}  # Of the reply; mind that numbers are floats here.
	var session = null
	var _id = 0
	var _bytes = PoolByteArray()
	var _sent = false
	var _due = 0  # sent: when the answer is overdue; not sent: when to send it
	var _end = 0  # when it is given up


# A session: a world that somebody is in.
class Session:
	extends Reference

	# A frame came, as a reply or as a push.
	signal frame_drawn(image)

	var token = ""  # Who knows it may do everything.
	var watch_token = ""  # Who knows it may watch.
	var world = ""
	var step_count = 0
	var words = ""  # The prompt in force.
	var frame = null  # An Image.
	var reward = 0.0
	var ended = 0.0
	var terminated = false
	var truncated = false
	# The last frame as an ImageTexture, for a TextureRect or a material; follows the session.
	var texture = null setget , get_texture

	var _sim
	var _shown = -1  # the step of `frame`
	var _watching = false
	var _credit = null  # the `watch` under way
	var _input = null  # the `input` under way
	var _held = null  # what is to be held
	var _told = null  # what the host was told

	func _init(sim):
		_sim = sim

	func get_texture():
		if texture == null and frame != null:
			texture = ImageTexture.new()
			texture.create_from_image(frame, 0)
		return texture

	# Draw the next frame under an action: a number, an Array or a Dictionary as the world's action space has it,
	# floats as a PoolRealArray (as JSON they lose digits), or a String of keys held such as "left+up".
	func step(action):
		return _ask("step", _with(_acting(action), {"step": step_count}))

	# Begin anew; options as in `open`.
	func reset(options = {}):
		_told = null  # the host lets go of all keys
		return _ask("reset", options)

	# Condition the frames from now on.
	func prompt(new_words):
		return _ask("prompt", {"prompt": new_words})

	# Keep the session as it is now, with the host: the reply's `fields.snapshot` is for `restore`.
	func snapshot():
		return _ask("snapshot")

	func restore(snapshot_token):
		return _ask("restore", {"snapshot": snapshot_token})

	# Open a twin; it is the reply's `session`.
	func fork(options = {}):
		return _sim.request("fork", _with(options, {"session": token}), get_script().new(_sim))

	# The last frame again; after an error "out-of-order" it says where the session is.
	func render():
		return _ask("render")

	func close():
		_watching = false
		return _ask("close")

	# Have every frame sent here without asking, see `frame_drawn`.
	func watch():
		_watching = true
		return _more(CREDITS)

	func unwatch():
		_watching = false
		return _ask("unwatch")

	# Start the clock: the host draws frames at a pace (the world's own, if 0), under what `input` says.
	func run(fps = 0.0):
		_told = null  # steps before may have held something else
		return _ask("run", {"fps": fps} if fps > 0 else {})

	func pause():
		return _ask("pause")

	# Hold an action until the next one. Call it as often as you like: only changes are sent, one at a time.
	func input(action):
		_held = action
		if _input == null and (typeof(_held) != typeof(_told) or _held != _told):
			_told = _held
			_input = _ask("input", _acting(action))

	# The keys held, as far as they mean something in this world; see the node's `keys`.
	func keys_held():
		var held = PoolStringArray()
		var known = _sim.keys_of(world)
		for action in _sim.keys:
			var key = _sim.keys[action]
			if InputMap.has_action(action) and Input.is_action_pressed(action) and (known.empty() or key in known):
				held.append(key)
		return held.join("+")

	func _ask(verb, fields = {}):
		return _sim.request(verb, _with(fields, {"session": token}), self)

	func _acting(action):
		return {"keys": action} if action is String else {"action": action}

	func _with(fields, more):
		var all = fields.duplicate()
		for name in more:
			all[name] = more[name]
		return all

	func _more(credits):
		_credit = _ask("watch", {"credits": credits})
		return _credit

	# What a reply or a push says of the session.
	func _take(fields, image):
		token = fields.get("session", token)
		watch_token = fields.get("watch", watch_token)
		world = fields.get("world", world)
		words = fields.get("prompt", words)
		step_count = int(fields.get("step", step_count))
		if image == null:
			return
		reward = fields.get("reward", 0.0)
		ended = fields.get("ended", 0.0)
		terminated = fields.get("terminated", false)
		truncated = fields.get("truncated", false)
		frame = image
		_shown = step_count
		if texture != null:
			texture.set_data(image)
		emit_signal("frame_drawn", image)

	func _answered(request, image):
		_take(request.fields, image)
		if request == _credit:
			_credit = null
		if request == _input:
			_input = null
			if request.code == "":
				input(_held)

	func _pushed(fields, image):
		if int(fields.step) != _shown:  # else a reply has brought it before
			_take(fields, image)
		if _watching and _credit == null and fields.credits < CREDITS / 2.0:
			_more(CREDITS)


func _process(_delta):
	poll()


# Reach a host and keep in touch with it. The reply's fields are `hello`.
func connect_to_host(new_address = ""):
	_hang_up()
	if new_address != "":
		address = new_address
	_dial_at = OS.get_ticks_msec()
	return _greet()


# Let go. Sessions live on until their leases end: close those that are done with.
func disconnect_from_host():
	_hang_up()
	_dial_at = -1


# Drop the connection and build another; what has no answer is sent again.
func reconnect():
	if _dial_at >= 0:
		_hang_up()
		_dial_at = OS.get_ticks_msec()


# Begin a session, which is the reply's `session`. Options, all optional: world, seed, prompt, start, guidance, snapshot.
func open(options = {}):
	return request("open", options, Session.new(self))


# Ask anything of the protocol. A PoolRealArray among the fields travels as a buffer.
func request(verb, fields = {}, session = null):
	_last_id += 1
	var header = {"v": VERSION, "id": _last_id, "verb": verb}
	var described = []
	var parts = [null]
	for name in fields:
		var value = fields[name]
		if value is PoolRealArray:
			described.append({"name": name, "encoding": "raw", "dtype": "float32", "shape": [value.size()]})
			parts.append(_floats(value))
		else:
			header[name] = value
	if described:
		header["buffers"] = described
	parts[0] = JSON.print(header).to_utf8()
	var bytes = PoolByteArray()
	for i in parts.size():
		bytes.append_array(_part(parts[i], 1 if i < parts.size() - 1 else 0))
	var made = Request.new()
	made.verb = verb
	made.session = session
	made._id = _last_id
	made._bytes = bytes
	made._end = OS.get_ticks_msec() + int(1000 * patience)
	_pending[_last_id] = made
	return made


# Block until a request has its answer; for scripts without a main loop.
func wait(request):
	while true:
		poll()
		if request.done:
			break
		OS.delay_usec(100)
	return request


# The keys that mean something in a world; empty where the host does not say.
func keys_of(world):
	var names = []
	for about in hello.get("worlds", []):
		if about.name == world:
			for combination in about.keys:
				names += Array(combination.split("+", false))
	return names


# Send and receive what can be without waiting. Every frame of the main loop does this.
func poll():
	if _dial_at < 0:
		for request in _pending.values():
			_fail(request, "disconnected", "there is no connection to a host")
		return
	var now = OS.get_ticks_msec()
	if _stage == APART and now >= _dial_at:
		_dial(now)
	if _stage != APART:
		var status = _tcp.get_status()
		if status == StreamPeerTCP.STATUS_CONNECTED and _tcp.is_connected_to_host():
			if _stage == DIALLING:
				_tcp.set_no_delay(true)
				_out = _greeting()
				_stage = GREETING
			_read()
			_send(now)
		elif status != StreamPeerTCP.STATUS_CONNECTING:
			_hang_up()
	_look_at_the_clock(now)


func _dial(now):
	var end = address.find_last(":")
	var host = address.substr(0, end).trim_prefix("tcp://").trim_prefix("[").trim_suffix("]")
	_since = now
	_stage = DIALLING
	if end < 0 or _tcp.connect_to_host(host, int(address.substr(end + 1))) != OK:
		_hang_up()


func _hang_up():
	_tcp.disconnect_from_host()
	_tcp = StreamPeerTCP.new()
	_stage = APART
	_dial_at = OS.get_ticks_msec() + PAUSE
	_in = PoolByteArray()
	_out = PoolByteArray()
	_parts = []
	_greeted = false
	for request in _pending.values():
		request._sent = false
		request._due = 0


func _greet():
	_greeted = false
	_hello = request("hello", {"client": _client, "name": "Godot"})
	return _hello


func _send(now):
	if _stage == TALKING:
		if _hello.done and not _greeted:
			_greet()
		for request in _pending.values():  # in the order of their ids
			if not request._sent and now >= request._due and (_greeted or request == _hello):
				request._sent = true
				request._due = now + int(1000 * timeout)
				_out.append_array(request._bytes)
	if _out.size() > 0:
		var result = _tcp.put_partial_data(_out)
		_out = _slice(_out, result[1], _out.size())
		if result[0] != OK:
			_hang_up()


func _look_at_the_clock(now):
	var overdue = _stage != APART and _stage != TALKING and now - _since > 1000 * timeout
	for request in _pending.values():
		if now >= request._end:
			var why = "the host at %s has not answered for %s s; is it running (worldsim serve)?"
			_fail(request, "no-answer", why % [address, patience])
		elif request._sent and now >= request._due:
			overdue = true
	if overdue:  # the connection may be dead without knowing
		reconnect()


func _read():
	var count = _tcp.get_available_bytes()
	if count > 0:
		_in.append_array(_tcp.get_partial_data(count)[1])
	if _stage == GREETING and _in.size() >= 64:
		if _in[12] != 0x4e:  # CURVE instead of NULL
			disconnect_from_host()
			_fail(_hello, "not-allowed", "the host at %s has keys, which this client does not speak" % address)
			return
		_in = _slice(_in, 64, _in.size())
		_out.append_array(_ready_command())
		_stage = SHAKING
	while _stage >= SHAKING and _read_part():
		pass


# Take one part off what came in; false if it has not come in whole.
func _read_part():
	var wide = _in.size() > 0 and _in[0] & 2
	var begin = 9 if wide else 2
	if _in.size() < begin:
		return false
	var length = 0
	for i in range(1, begin):
		length = length << 8 | _in[i]
	if _in.size() < begin + length:
		return false
	var flags = _in[0]
	var bytes = _slice(_in, begin, begin + length)
	_in = _slice(_in, begin + length, _in.size())
	if flags & 4:
		_obey(bytes)
		return true
	_parts.append(bytes)
	if not flags & 1:
		var message = _parts
		_parts = []
		_receive(message)
	return true


# A command: its name comes first, after the name's length.
func _obey(bytes):
	var name = _slice(bytes, 1, 1 + bytes[0]).get_string_from_ascii()
	if name == "READY":
		_stage = TALKING
	elif name == "PING":
		var pong = "\u0004PONG".to_ascii()
		pong.append_array(_slice(bytes, 7, bytes.size()))
		_out.append_array(_part(pong, 4))


func _receive(message):
	var header = JSON.parse(message[0].get_string_from_utf8()).result
	var image = null
	if message.size() > 1 and header.buffers[0].name == "frame":
		var shape = header.buffers[0].shape
		image = Image.new()
		image.create_from_data(int(shape[1]), int(shape[0]), false, Image.FORMAT_RGB8, message[1])
	if header.verb == "frame":
		if _sessions.has(header.session):
			_sessions[header.session]._pushed(header, image)
	elif header.verb == "bye":
		emit_signal("bye", header.resume)
	elif header.get("id") != null and _pending.has(int(header.id)):  # else it is answered already
		_answer(_pending[int(header.id)], header, image)


func _answer(request, header, image):
	var error = header.get("error")
	if error != null:
		if error.code == "hello-first":
			request._sent = false
			_greeted = false
		elif error.code in ["too-fast", "stopping"]:
			request._sent = false
			request._due = OS.get_ticks_msec() + int(max(PAUSE, 1000 * error.get("wait", 0.0)))
		else:
			request.fields = error  # "out-of-order" brings the session's step
			_fail(request, error.code, error.message)
			if request == _hello:
				disconnect_from_host()
		return
	request.fields = header
	if request == _hello:
		hello = header
		_greeted = true
		for session in _sessions.values():  # a new connection watches nothing yet
			if session._watching and session._credit == null:
				session._more(CREDITS)
	elif request.verb in ["open", "fork"]:
		_sessions[header.session] = request.session
	elif request.verb == "close":
		_sessions.erase(request.session.token)
	_finish(request, image)


func _fail(request, code, message):
	request.code = code
	request.message = message
	_finish(request, null)
	emit_signal("failed", request)


func _finish(request, image):
	_pending.erase(request._id)
	request.done = true
	if request.session != null:
		request.session._answered(request, image)
	request.emit_signal("finished", request)


static func _greeting():
	var bytes = PoolByteArray([0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0])
	bytes.append_array("NULL".to_ascii())
	while bytes.size() < 64:
		bytes.append(0)
	return bytes


static func _ready_command():
	var bytes = "\u0005READY\u000bSocket-Type".to_ascii()
	bytes.append_array(PoolByteArray([0, 0, 0, 6]))
	bytes.append_array("DEALER".to_ascii())
	return _part(bytes, 4)


# A part of a message as it travels. Flags: 1 more parts follow, 2 the length has 8 bytes, 4 a command.
static func _part(bytes, flags):
	var size = bytes.size()
	var part = PoolByteArray([flags, size])
	if size > 255:
		part = PoolByteArray([flags | 2])
		for i in 8:
			part.append(size >> 8 * (7 - i) & 255)
	part.append_array(bytes)
	return part


# Bytes from `begin` up to `end`, without it; `subarray` knows no empty ones.
static func _slice(bytes, begin, end):
	return bytes.subarray(begin, end - 1) if end > begin else PoolByteArray()


static func _floats(values):
	var buffer = StreamPeerBuffer.new()
	for value in values:
		buffer.put_float(value)
	return buffer.data_array
