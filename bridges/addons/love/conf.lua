local UNUSED = { "audio", "sound", "video", "joystick", "physics", "touch", "thread" }
local SCREEN = { "window", "graphics", "font", "keyboard", "mouse" }

function love.conf(t)
  t.identity = "worldsim"
  t.version = "11.4"
  t.window.title = "worldsim"
  t.window.width, t.window.height = 640, 680
  t.window.resizable = true
  local headless = false -- the program of the test needs no screen
  for _, word in ipairs(arg) do headless = headless or word == "--hashes" end
  for _, name in ipairs(UNUSED) do t.modules[name] = false end
  for _, name in ipairs(SCREEN) do t.modules[name] = not headless end
end
