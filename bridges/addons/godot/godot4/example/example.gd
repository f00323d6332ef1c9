extends Control
## Play a hosted world with the arrow keys: the host draws frames at its pace, under the keys that are held.
## Enter: go to the prompt, and from there send it. R: begin anew. Escape: leave.
## Another host or world: godot --path . -- --address=tcp://127.0.0.1:5570 --world=doom --seed=1 --prompt=...
## --frames=100 leaves after so many.

# In your own game the name WorldSim does; this works before the editor has seen the project, too.
const Sim := preload("res://addons/worldsim/worldsim.gd")

var session: Sim.Session
var last_frame := 0  # where it leaves by itself

@onready var sim: Sim = $WorldSim
@onready var picture: TextureRect = $Picture
@onready var counter: Label = $Line/Counter
@onready var words: LineEdit = $Line/Words


func _ready() -> void:
	var options := {"seed": 1}
	for argument in OS.get_cmdline_user_args():
		var pair := argument.trim_prefix("--").split("=")
		if pair[0] == "address":
			sim.address = pair[1]
		elif pair[0] == "frames":
			last_frame = int(pair[1])
		else:
			options[pair[0]] = int(pair[1]) if pair[0] == "seed" else pair[1]
	sim.failed.connect(func(request: Sim.Request): counter.text = request.message)
	counter.text = "connecting to " + sim.address
	await sim.connect_to_host().finished
	if sim.hello.is_empty():
		return
	if not options.has("world"):
		options.world = sim.hello.worlds[0].name
	var reply: Sim.Request = await sim.open(options).finished
	if reply.code:
		return
	session = reply.session
	session.frame_drawn.connect(_on_frame_drawn)
	picture.texture = session.texture  # follows the session by itself
	words.text = session.words
	_on_frame_drawn(session.frame)
	session.watch()
	session.run()


func _process(_delta: float) -> void:
	if session != null:
		session.input("" if words.has_focus() else session.keys_held())


func _on_frame_drawn(_image: Image) -> void:
	counter.text = "%s  frame %d%s" % [session.world, session.step_count, "  the end" if session.terminated else ""]
	if last_frame > 0 and session.step_count >= last_frame:
		print(counter.text)
		get_tree().quit()


func _unhandled_key_input(event: InputEvent) -> void:
	if session == null or not event.is_pressed() or event.is_echo():
		return
	match (event as InputEventKey).keycode:
		KEY_ENTER:
			words.grab_focus.call_deferred()  # not before this very Enter is over
		KEY_R:
			session.reset({"seed": randi(), "prompt": session.words})
		KEY_ESCAPE:
			get_tree().quit()


func _on_words_text_submitted(text: String) -> void:
	words.release_focus()
	if session != null:
		session.prompt(text)


func _exit_tree() -> void:
	if session != null:
		sim.patience = 1.0  # a host that is gone ends it by itself
		sim.wait(session.close())
