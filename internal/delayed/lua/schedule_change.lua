-- Changes a schedule if it stands as expected, stores or removes its tick, and appends runs, all in one step.
-- common.lua stands before this text.
--
-- KEYS[1] topic, KEYS[2] control, KEYS[3] delayed, KEYS[4] due set, KEYS[5] leader key, KEYS[6] schedules
-- ARGV[1] topic's name, ARGV[2] schedule ID
-- ARGV[3] expected state, ARGV[4] when the stored tick is expected to be due; empty texts if there is none
-- ARGV[5] new state, or '' to delete the schedule; ARGV[6] new definition, or '' to leave it
-- ARGV[7] `keep`, when the tick to store is due, or '' to remove the stored one; ARGV[8] its packed entry
-- ARGV[9...] pairs of the tick and the packed entry of a run to append, '' to record it as skipped
--
-- Returns now, 1 if a mover leads or 0, and the entry ID, or `skipped`, of each run; nothing if the
-- schedule stands otherwise. An error reply means that nothing was changed: the types of all keys are
-- checked first, and a command that may be refused comes before the first write that matters.
--
-- A repetition after a lost reply finds another state, and changes nothing.

local topic, control, delayed, due, schedules = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[6]
local id, state, tick = ARGV[2], ARGV[5], ARGV[7]
local member = 'schedule:' .. id

for key, want in pairs({[topic] = 'stream', [control] = 'hash', [delayed] = 'hash', [due] = 'zset', [schedules] = 'hash'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= want then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds no ' .. want)
  end
end
local other = collision(control, ARGV[1])
if other then
  return other
end
local waiting = redis.call('ZSCORE', due, member) or ''
if (redis.call('HGET', schedules, 's:' .. id) or '') ~= ARGV[3] or waiting ~= ARGV[4] then
  return {}
end
local entries = {}
for i = 9, #ARGV, 2 do
  local values, problem = {}, nil
  if ARGV[i + 1] ~= '' then
    values, problem = unpacked(ARGV[i + 1])
  end
  if problem then
    return redis.error_reply('ERR the entry of ' .. ARGV[i] .. ' cannot be read: ' .. problem)
  end
  entries[#entries + 1] = values
end
local now, led = milliseconds(), redis.call('EXISTS', KEYS[5])
local runs = redis.call('HGET', schedules, 'r:' .. id) or ''
local retention = redis.call('HGET', control, 'retention') or ''

for _, probe in ipairs({redis.pcall('ZADD', due, 'XX', 0, ''), redis.pcall('ZREM', due, ''), redis.pcall('HDEL', delayed, '')}) do
  if failed(probe) then -- it changes nothing
    return failure(probe)
  end
end
local out = {text(now), led}
if state ~= '' then
  local set = redis.pcall('HSET', control, 'topic', ARGV[1])
  if failed(set) then
    return failure(set)
  end
  for n, values in ipairs(entries) do
    local outcome = #values > 0 and append(topic, retention, now, values) or 'skipped'
    if failed(outcome) then
      return failure(outcome)
    end
    out[#out + 1] = outcome
    runs = with_run(runs, ARGV[7 + 2 * n], outcome)
  end
end
if tick ~= 'keep' and tick ~= '' then
  redis.call('HSET', delayed, member, ARGV[8])
  redis.call('ZADD', due, tick, member)
elseif tick == '' and waiting ~= '' then
  redis.call('ZREM', due, member)
  redis.call('HDEL', delayed, member)
end
if state == '' then
  redis.call('HDEL', schedules, 's:' .. id, 'd:' .. id, 'r:' .. id)
  return out
end
redis.call('HSET', schedules, 's:' .. id, state)
if ARGV[6] ~= '' then
  redis.call('HSET', schedules, 'd:' .. id, ARGV[6])
end
if #entries > 0 then
  redis.call('HSET', schedules, 'r:' .. id, runs)
end
return out
