-- Ends one pending entry of a group that no handler is to get any more, in two steps. A subscription that has the
-- entry puts it back if it is not pending while its lease is valid: so the entry is claimed for the consumer
-- `operator` first, and ended when every lease on it is over. common.lua, and original.lua and dead_common.lua of
-- internal/stream, stand before this text.
-- KEYS[4] where the entry is pending (the topic, or the return stream of the group), KEYS[5] dead-letter stream
-- ARGV[4] entry ID, ARGV[5] 'dead' or 'drop', ARGV[6] reason, ARGV[7] time, as a dead letter has it, ARGV[8] MinIdle in ms,
-- for a group that has none
-- ARGV[9] 'look' changes nothing, 'take' claims the entry and adds the line to the audit stream, 'keep' claims it again,
-- 'end' ends it
-- Returns {outcome, consumer, delivery count, ID of the original, ID of the dead letter or '', ms until no lease is
-- valid}. The outcomes:
--   'done'         or, with 'look', what would be done
--   'not pending'  the group has no such entry; nothing was done
--   'lost'         with 'keep' and 'end': another consumer has claimed the entry meanwhile; nothing was done
--   'gone'         'dead' only: the stream does not have the entry any more; nothing was done
--   'large'        'dead' only: too many fields for one call in Lua; nothing was done
local OPERATOR = 'operator'
local key, dead = KEYS[4], KEYS[5]
local id, mode, reason, step = ARGV[4], ARGV[5], ARGV[6], ARGV[9]
local other = collision(control, topic) or missing()
if other then
  return other
end
local pending = redis.pcall('XPENDING', key, group, id, id, 1)
if failed(pending) then
  return failure(pending)
end
if not pending[1] then
  return {'not pending', '', 0, '', '', 0}
end
local owner, idle, count, origin, fields = pending[1][2], pending[1][3], pending[1][4], id, nil
local deliveries = count
local entry = redis.call('XRANGE', key, id, id)[1]
if entry then
  fields = entry[2]
  local n = #fields
  if key ~= stream and n > 6 and fields[n - 5] == '_return_entry_id' then
    origin, count = fields[n - 4], count + (tonumber(fields[n]) or 0)
    fields = original(fields)
  end
end
local wait = tonumber(redis.call('HGET', control, 'min-idle:' .. group) or ARGV[8]) - idle
if wait < 0 or not fields then -- what the stream does not have is put back by no subscription
  wait = 0
end
local function answer(outcome, letter)
  return {outcome, owner, count, origin, letter or '', wait}
end
if (step == 'keep' or step == 'end') and owner ~= OPERATOR and fields then
  return answer('lost')
end
if mode == 'dead' and not fields then
  return answer('gone')
end
if mode == 'dead' and #fields > 7900 then -- unpack fails at about 8,000 values
  return answer('large')
end
if step == 'look' then
  return answer('done')
end

local function claim()
  if not fields then return nil end -- Redis would not claim it
  local reply = redis.pcall('XCLAIM', key, group, OPERATOR, 0, id, 'RETRYCOUNT', deliveries, 'JUSTID')
  return failed(reply) and failure(reply) or nil
end
if step == 'keep' then
  return claim() or answer('done')
end
-- A missing permission fails here: nothing has the ID 0-0, and no consumer an empty name.
for _, probe in ipairs({{'XACK', key, group, '0-0'}, {'XDEL', dead, '0-0'}, {'XDEL', key, '0-0'}, {'XGROUP', 'DELCONSUMER', key, group, ''}}) do
  local reply = redis.pcall(unpack(probe))
  if failed(reply) then
    return failure(reply)
  end
end
if step == 'take' then
  local err = note('skip', 'entry', origin, 'consumer', owner, 'to', mode, 'reason', reason)
  return err or claim() or answer('done')
end

local added = ''
if mode == 'dead' then
  for _, value in ipairs({'_dead_reason', reason, '_dead_entry_id', origin, '_dead_topic', topic, '_dead_group', group,
    '_dead_consumer', owner, '_dead_count', tostring(count), '_dead_time', ARGV[7]}) do
    fields[#fields + 1] = value
  end
  added = redis.pcall('XADD', dead, '*', unpack(fields))
  if failed(added) then
    return failure(added)
  end
end
acknowledge(key, stream, group, id)
if #redis.call('XPENDING', key, group, '-', '+', 1, OPERATOR) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', key, group, OPERATOR)
end
return answer('done', added)
