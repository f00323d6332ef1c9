extends Control
# Play a hosted world with the arrow keys: the host draws frames at its pace, under the keys that are held.
# Enter: go to the prompt, and from there send it. R: begin anew. Escape: leave.
# Another host or world: godot3 --path . --address=tcp://127.0.0.1:5570 --world=doom --seed=1 --prompt=...
# --frames=100 leaves after so many.

var session = null
var last_frame = 0  # where it leaves by itself

onready var sim = $WorldSim
onready var picture = $Picture
onready var counter = $Line/Counter
onready var words = $Line/Words


func _ready():
	var options = {"seed": 1}
	for argument in OS.get_cmdline_args():
		var pair = argument.trim_prefix("--").split("=")
		if pair[0] == "address":
			sim.address = pair[1]
		elif pair[0] == "frames":
			last_frame = int(pair[1])
		elif pair[0] in ["world", "seed", "prompt"]:
			options[pair[0]] = int(pair[1]) if pair[0] == "seed" else pair[1]
	sim.connect("failed", self, "_on_failed")
	counter.text = "connecting to " + sim.address
	yield(sim.connect_to_host(), "finished")
	if sim.hello.empty():
		return
	if not options.has("world"):
		options.world = sim.hello.worlds[0].name
	var reply = yield(sim.open(options), "finished")
	if reply.code:
		return
	session = reply.session
	session.connect("frame_drawn", self, "_on_frame_drawn")
	picture.texture = session.texture  # follows the session by itself
	words.text = session.words
	_on_frame_drawn(session.frame)
	session.watch()
	session.run()


func _process(_delta):
	if session != null:
		session.input("" if words.has_focus() else session.keys_held())


func _on_failed(request):
	counter.text = request.message


func _on_frame_drawn(_image):
	counter.text = "%s  frame %d%s" % [session.world, session.step_count, "  the end" if session.terminated else ""]
	if last_frame > 0 and session.step_count >= last_frame:
		print(counter.text)
		get_tree().quit()


func _unhandled_key_input(event):
	if session == null or not event.pressed or event.echo:
		return
	match event.scancode:
		KEY_ENTER:
			words.call_deferred("grab_focus")  # not before this very Enter is over
		KEY_R:
			session.reset({"seed": randi(), "prompt": session.words})
		KEY_ESCAPE:
			get_tree().quit()


func _on_Words_text_entered(text):
	words.release_focus()
	if session != null:
		session.prompt(text)


func _exit_tree():
	if session != null:
		sim.patience = 1.0  # a host that is gone ends it by itself
		sim.wait(session.close())
