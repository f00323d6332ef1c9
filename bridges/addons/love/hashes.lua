-- The program of the test: love bridges/addons/love --hashes ADDRESS SEED FRAMES
--
-- Prints the SHA-256 of the first frame of a session and of each after an action. Now and then it lets go of its
-- connection while a step is under way, once when the host has drawn the frame and the answer is lost.

local worldsim = require "worldsim"

local DROPS = { [50] = 0, [100] = 0.001, [150] = 0.003, [200] = 0.008, [250] = 0.2 } -- frame: after seconds

local function digest(frame) return love.data.encode("string", "hex", love.data.hash("sha256", frame.data)) end

-- Actions by a plain rule that every language can follow.
local function drive(seed)
  local x = 0ULL + seed
  return function()
    x = (1103515245ULL * x + 12345) % 2147483648ULL
    return tonumber(x / 65536 % 2)
  end
end

return function(address, seed, frames)
  local client = worldsim.connect(address, { name = "hashes.lua" })
  local function finish(request)
    local reply, problem = client:finish(request)
    if problem then error(problem.code .. ": " .. problem.message) end
    return reply
  end
  local session = finish(client:open { seed = seed, prompt = "a cart" })
  local action = drive(seed)
  print(digest(session.frame))
  for i = 1, frames do
    local request = session:step { action = action() }
    if DROPS[i] then
      love.timer.sleep(DROPS[i])
      client:reconnect()
    end
    finish(request)
    print(digest(session.frame))
  end
  finish(session:close())
  client:close()
  io.stderr:write("sent again: ", client.resends, "\n")
end
