-- Defers retries: stores each entry for the group's return stream and acknowledges it, in one step and
-- only while the consumer owns it.
-- common.lua, and original.lua and paused.lua of internal/stream, stand before this text.
--
-- KEYS[1] stream of the entries: the topic, or the return stream, KEYS[2] due set of the return
-- stream, KEYS[3] delayed, KEYS[4] control
-- ARGV[1] topic's name, ARGV[2] group, ARGV[3] consumer, ARGV[4] how many may be deferred at most
-- ARGV[5] most bytes of an entry
-- ARGV[6] how often the group had been sought when the consumer took its name; see superseded
-- ARGV[7...] of each: entry ID, entry ID of the original, reason, deliveries that count, delay in ms
--
-- Returns now, when the first entry of the due set is due or -1, and of each entry one of
--   'deferred'  stored and acknowledged, now or by a run whose reply was lost
--   'owner'     another consumer owns it
--   'settled'   it is not pending
--   'full'      as many as may be are deferred
--   'large'     too many fields or bytes
--   'gone'      the stream has it no more
-- All but the first have changed nothing. Nor has an error reply, but for entries that a further call
-- finds deferred.

local stream, due, delayed, control = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local topic, group, consumer, most, bytes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

-- A stored entry of names and values, or nil where it is too large.
local function packed(values)
  local out, size = {'\1'}, 1
  for _, v in ipairs(values) do
    local n = #v
    size = size + 4 + n
    out[#out + 1] = string.char(math.floor(n / 16777216), math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256)
    out[#out + 1] = v
  end
  if #values <= max_values and size <= bytes then
    return table.concat(out)
  end
end

local other = collision(control, topic) or superseded(control, group, ARGV[6])
if other then
  return other
end
local room = most - redis.call('ZCARD', due)
redis.call('HLEN', delayed) -- fails where it is no hash
local probe = redis.pcall('ZADD', due, 'XX', 0, '') -- changes nothing
if failed(probe) then
  return failure(probe)
end
local now, names = milliseconds(), {'_return_entry_id', '_return_reason', '_return_count'}

-- Defers an entry and returns what became of it, or an error.
local function defer(id, block, delay)
  local stored = group .. ' ' .. stream .. ' ' .. id
  local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if not pending then
    return redis.call('HEXISTS', delayed, stored) == 1 and 'deferred' or 'settled'
  elseif pending[2] ~= consumer then
    return 'owner'
  elseif room <= 0 then
    return 'full'
  end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  if not entry then
    return 'gone'
  end
  local values = entry[2]
  if stream ~= topic then
    values = original(values)
  end
  for i = 1, 3 do
    values[#values + 1] = names[i]
    values[#values + 1] = block[i]
  end
  local value = packed(values)
  if not value then
    return 'large'
  end
  local set = redis.pcall('HSET', control, 'topic', topic)
  if not failed(set) then
    set = redis.pcall('HSET', delayed, stored, value)
  end
  if failed(set) then
    return set
  end
  redis.call('ZADD', due, text(now + delay), stored)
  redis.call('XACK', stream, group, id)
  if stream ~= topic then
    redis.call('XDEL', stream, id)
  end
  room = room - 1
  return 'deferred'
end

local states = {}
for i = 7, #ARGV, 5 do
  local state = defer(ARGV[i], {ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]}, ARGV[i + 4])
  if failed(state) then
    return failure(state)
  end
  states[#states + 1] = state
end
return {text(now), text(first_due(due)), unpack(states)}
