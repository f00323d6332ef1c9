-- A world as a game: love bridges/addons/love [ADDRESS] [WORLD] [PROMPT]
--
-- Arrow keys or WASD play, Tab types a prompt, R begins anew, Escape ends it. The host keeps the pace: it draws under
-- what is held, and pushes the frames.

local utf8 = require "utf8"
local worldsim = require "worldsim"

local NAMES = { -- of keys, where the protocol has others
  lctrl = "left ctrl", rctrl = "right ctrl", lshift = "left shift", rshift = "right shift",
  lalt = "left alt", ralt = "right alt", lgui = "left meta", rgui = "right meta",
}
local LETTERS = { w = "up", a = "left", s = "down", d = "right" }
local LINE = 40 -- pixels for the words below the picture

local client, session, picture, image_data
local known = { left = true, right = true, up = true, down = true } -- keys that mean something in this world
local held, sent = {}, "" -- keys in the order they were pressed, and what the host knows of them
local typed -- the prompt, while it is typed
local note = "connecting"

local function tell(_, problem) note = problem and problem.message or "" end

local function new_seed() return love.math.random(2 ^ 31) end

local function on_frame()
  image_data = session:image_data(image_data)
  if picture then return picture:replacePixels(image_data) end
  picture = love.graphics.newImage(image_data)
  picture:setFilter("nearest", "nearest")
end

local function learn_keys()
  for _, world in ipairs(client.hello.worlds) do
    if world.name == session.world and next(world.keys) then
      known = {}
      for keys in pairs(world.keys) do
        for key in keys:gmatch "[^+]+" do known[key] = true end
      end
    end
  end
end

local function begun(opened, problem)
  tell(opened, problem)
  if problem then return end
  session = opened
  on_frame()
  learn_keys()
  session:watch(on_frame)
  session:run(nil, tell)
end

function love.load(words)
  if words[1] == "--hashes" then
    require "hashes"(words[2], tonumber(words[3]), tonumber(words[4]))
    return love.event.quit()
  end
  love.keyboard.setKeyRepeat(true) -- for typing
  love.keyboard.setTextInput(false)
  client = worldsim.connect(words[1], { name = "LÖVE player" })
  client.on_problem = function(problem) tell(nil, problem) end
  local function open(world) client:open({ world = world, prompt = words[3], seed = new_seed() }, begun) end
  if words[2] then return open(words[2]) end
  client:call("stats", {}, function(reply, problem) -- the first world; by then the host has said which it has
    tell(reply, problem)
    if reply then open(client.hello.worlds[1].name) end
  end)
end

function love.update()
  client:update()
  local keys = table.concat(held, "+")
  if session and keys ~= sent then
    sent = keys
    session:input({ keys = keys }, tell)
  end
end

function love.draw()
  local width, height = love.graphics.getDimensions()
  if picture then
    local scale = math.min(width / picture:getWidth(), (height - LINE) / picture:getHeight())
    if scale > 1 then scale = math.floor(scale) end
    love.graphics.draw(picture, math.floor((width - scale * picture:getWidth()) / 2), 0, 0, scale)
  end
  local line = note
  if typed then
    line = "prompt: " .. typed .. "_"
  elseif session and note == "" then
    line = session.prompt .. "   " .. sent
    if session.terminated or session.truncated then line = line .. "   over, R begins anew" end
  end
  love.graphics.printf(line, 8, height - LINE + 4, width - 16)
end

local function play_key(key)
  key = NAMES[key] or key
  if not known[key] then key = LETTERS[key] end
  return known[key] and key
end

local function let_go(key)
  for i = #held, 1, -1 do
    if held[i] == key then table.remove(held, i) end
  end
end

local function stop_typing()
  typed = nil
  love.keyboard.setTextInput(false)
end

local function type_key(key)
  if key == "return" then
    if typed ~= "" then session:say(typed, tell) end
    stop_typing()
  elseif key == "escape" then
    stop_typing()
  elseif key == "backspace" and typed ~= "" then
    typed = typed:sub(1, utf8.offset(typed, -1) - 1)
  end
end

function love.keypressed(key, _, again)
  if typed then return type_key(key) end
  if again then return end
  if key == "escape" then
    love.event.quit()
  elseif session and key == "tab" then
    typed = ""
    love.keyboard.setTextInput(true)
  elseif session and key == "r" then
    session:reset({ seed = new_seed() }, tell)
    sent = "" -- a session that begins anew holds nothing
  elseif play_key(key) then
    let_go(play_key(key))
    table.insert(held, play_key(key))
  end
end

function love.keyreleased(key) let_go(play_key(key)) end

function love.textinput(text)
  if typed then typed = typed .. text end
end

function love.focus(here)
  if not here then held = {} end
end

function love.quit()
  if session then session:close() end
  if client then client:close() end
end
