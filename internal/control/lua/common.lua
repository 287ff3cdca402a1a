-- Stands before the scripts that change the control record; common.lua of internal/delayed, and paused.lua of
-- internal/stream, stand before this text. KEYS[1] control, KEYS[2] audit, KEYS[3] stream of the topic.
-- ARGV[1] topic's name, ARGV[2] group, ARGV[3] who acts.
--
-- Only the first write can fail: what is written first sets a value that is set already, and then comes the
-- line in the audit stream, so that nothing is done without one.
local control, audit, stream = KEYS[1], KEYS[2], KEYS[3]
local topic, group = ARGV[1], ARGV[2]

-- The error of a topic that has no such group, or nil.
local function missing()
  local names = {}
  if redis.call('EXISTS', stream) == 1 then
    for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      for i = 1, #flat, 2 do
        if flat[i] == 'name' then
          if flat[i + 1] == group then return nil end
          names[#names + 1] = flat[i + 1]
        end
      end
    end
  end
  return redis.error_reply('NOGROUP the groups of ' .. topic .. ' are: ' .. table.concat(names, ', '))
end

-- Adds a line to the audit stream. Returns the error that prevents it, or nil.
local function note(action, ...)
  redis.call('XLEN', audit) -- fails where it is no stream
  local reply = redis.pcall('HSET', control, 'topic', topic)
  if not failed(reply) then
    reply = redis.pcall('XADD', audit, 'MAXLEN', '~', '10000', '*', 'who', ARGV[3], 'action', action, 'group', group, ...)
  end
  if failed(reply) then
    return failure(reply)
  end
end
