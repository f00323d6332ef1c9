extends SceneTree
## Plays a hosted world without a window and prints the SHA-256 of each frame, one to a line:
## godot --headless --path . --script res://headless.gd -- --address=tcp://127.0.0.1:5570 --seed=7 --frames=300
## The actions are those of `drive` in tests/hosting.py. On the way it loses its connection three times, on purpose.
## With --tour it then tries the other verbs, and prints what came of each.

const Sim := preload("res://addons/worldsim/worldsim.gd")

var sim := Sim.new()
var given := {"address": "tcp://127.0.0.1:5570", "seed": "0", "frames": "300"}


func _initialize() -> void:
	for argument in OS.get_cmdline_user_args():
		var pair := argument.trim_prefix("--").split("=")
		given[pair[0]] = pair[-1]
	sim.failed.connect(func(request): printerr("%s: %s (%s)" % [request.verb, request.message, request.code]))
	play()
	if given.has("tour"):
		tour()
	sim.free()
	quit()


func play() -> void:
	ask(sim.connect_to_host(given.address))
	var session = ask(sim.open({"seed": int(given.seed), "prompt": "a cart"})).session
	print(digest(session))
	var x := int(given.seed)
	var count := int(given.frames)
	for i in count:
		x = (1103515245 * x + 12345) % (1 << 31)
		var request = session.step(x >> 16 & 1)
		if i * 4 % count == 0 and i > 0:  # a quarter, a half, three quarters of the way
			sim.poll()
			OS.delay_msec(100 * i / count)  # the host draws it; sooner or later than the connection ends
			sim.reconnect()
		ask(request)
		print(digest(session))
	ask(session.close())


func tour() -> void:
	var session = ask(sim.open({"seed": 3})).session
	var first := digest(session)
	ask(session.step("right"))
	var kept: String = ask(session.snapshot()).fields.snapshot
	ask(session.step(0))
	var drawn := digest(session)
	ask(session.restore(kept))
	var twin = ask(session.fork()).session
	for one in [session, twin]:
		ask(one.step(0))
		report("the same again", digest(one) == drawn)
	ask(twin.close())
	report("a closed session", ask(twin.step(0)).code)
	ask(session.prompt("a cart"))
	report("prompt", session.words)
	report("half an action", ask(session.step(0.5)).code)
	ask(session.reset({"seed": 3}))
	report("as it began", digest(session) == first)
	report("texture", session.texture.get_size() == Vector2(session.frame.get_size()))
	ask(session.watch())
	ask(session.run(100.0))
	var begun: int = session.step_count
	var frames := [0]
	session.frame_drawn.connect(func(_image): frames[0] += 1)
	while frames[0] < 2 * Sim.CREDITS:  # more than come without asking for more
		session.input("right" if frames[0] % 2 else "left")
		sim.poll()
		if frames[0] == Sim.CREDITS:
			sim.reconnect()  # goes on watching by itself
			frames[0] += 1
	ask(session.pause())
	report("watched", session.step_count - begun >= 2 * Sim.CREDITS - 1)
	ask(session.step(1))
	ask(session.close())


func ask(request):
	return sim.wait(request)


func digest(session) -> String:
	var hashing := HashingContext.new()
	hashing.start(HashingContext.HASH_SHA256)
	hashing.update(session.frame.get_data())
	return hashing.finish().hex_encode()


func report(what: String, value) -> void:
	print("%s: %s" % [what, str(value).to_lower()])
