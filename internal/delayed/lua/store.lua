-- Stores entries that are due later and appends those that are due at once, all in one step.
-- common.lua stands before this text.
--
-- KEYS[1] topic, KEYS[2] control, KEYS[3] delayed, KEYS[4] due set, KEYS[5] leader key
-- ARGV[1] `*`, which every command of the appender has
-- ARGV[2] topic's name, ARGV[3] its retention, as append takes it
-- ARGV[4...] pairs of when an entry is due and the packed entry: `` at once, `=ms` at that time
-- of this server's clock, `+ms` that much later than now
--
-- Returns a text: now, when the first entry of the due set is due or -1, 1 if a mover leads or 0, and for each entry
-- `d` and the delayed ID, or `e` and the entry ID. An error reply means that nothing was stored or
-- appended: the types of all keys are checked first, and a command that may be refused because Redis
-- is out of memory or a permission is missing comes before the first write that matters.
--
-- A repetition after a lost reply stores everything again: the caller must not make one.

local topic, control, delayed, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local name, retention = ARGV[2], ARGV[3]

for key, want in pairs({[topic] = 'stream', [control] = 'hash', [delayed] = 'hash', [due] = 'zset'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= want then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds no ' .. want)
  end
end
local other = collision(control, name)
if other then
  return other
end

local now = milliseconds()
local at, entries, later = {}, {}, 0
for i = 4, #ARGV, 2 do
  local n = (i - 2) / 2
  local kind, ms = string.match(ARGV[i], '^([=+])(%d+)$')
  at[n] = kind and (kind == '+' and now + ms or tonumber(ms)) or 0
  if at[n] > now then
    later = later + 1
  else
    local values, problem = unpacked(ARGV[i + 1])
    if not values then
      return redis.error_reply('ERR entry ' .. n .. ' cannot be read: ' .. problem)
    end
    entries[n] = values
  end
end

local first = 0
if later > 0 then
  local probe = redis.pcall('ZADD', due, 'XX', 0, '') -- changes nothing
  if failed(probe) then
    return failure(probe)
  end
  local last = redis.pcall('HINCRBY', control, 'delayed', later) -- numbers may be left out
  if failed(last) then
    return failure(last)
  end
  local set = redis.pcall('HSET', control, 'topic', name, 'retention', retention)
  if failed(set) then
    return failure(set)
  end
  first = last - later
end
local out, stored, scores = {}, {}, {}
for n = 1, #at do
  if entries[n] then
    local id = append(topic, retention, now, entries[n])
    if failed(id) then
      return failure(id)
    end
    out[n] = 'e' .. id
  else
    first = first + 1
    local id = text(now) .. '-' .. text(first)
    out[n] = 'd' .. id
    stored[#stored + 1] = id
    stored[#stored + 1] = ARGV[2 * n + 3]
    scores[#scores + 1] = text(at[n])
    scores[#scores + 1] = id
  end
end
if later > 0 then
  redis.call('HSET', delayed, unpack(stored))
  redis.call('ZADD', due, unpack(scores))
end
return text(now) .. ' ' .. text(first_due(due)) .. ' ' .. redis.call('EXISTS', KEYS[5]) .. ' ' .. table.concat(out, ' ')
