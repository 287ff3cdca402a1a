-- Removes a consumer that has nothing pending. common.lua stands before this text.
-- KEYS[4] return stream of the group
-- ARGV[4] consumer, ARGV[5] it is alive if it was idle for less than that, in ms, or 0, ARGV[6] how many of its entries
-- were released, ARGV[7] '1' if nothing is to be changed
-- Returns {outcome, pending entries, idle time in ms}. The outcomes:
--   'done'     or, with nothing to be changed, what would be done
--   'missing'  the group has no such consumer
--   'pending'  it has pending entries; nothing was done
--   'alive'    nothing was done
local back, consumer = KEYS[4], ARGV[4]
local other = collision(control, topic) or missing()
if other then
  return other
end

-- The pending entries and the idle time of the consumer in a stream, or nil, or an error.
local function look(key)
  local reply = redis.pcall('XINFO', 'CONSUMERS', key, group)
  if failed(reply) then
    if string.find(reply.err, 'no such key', 1, true) or string.find(reply.err, 'NOGROUP', 1, true) then return nil end
    return nil, nil, failure(reply)
  end
  for _, flat in ipairs(reply) do
    local c = {}
    for i = 1, #flat, 2 do
      c[flat[i]] = flat[i + 1]
    end
    if c.name == consumer then return c.pending, c.idle end
  end
end

local pending, idle, at = 0, nil, {}
for _, key in ipairs({stream, back}) do
  local n, since, err = look(key)
  if err then
    return err
  end
  if n then
    pending, idle = pending + n, math.min(idle or since, since)
    at[#at + 1] = key
  end
end
if not idle then
  return {'missing', 0, 0}
end
if idle < tonumber(ARGV[5]) then
  return {'alive', pending, idle}
end
if pending > 0 then
  return {'pending', pending, idle}
end
if ARGV[7] == '1' then
  return {'done', pending, idle}
end
-- A missing permission fails here: no consumer has an empty name.
local probe = redis.pcall('XGROUP', 'DELCONSUMER', at[1], group, '')
if failed(probe) then
  return failure(probe)
end
local err = note('remove consumer', 'consumer', consumer, 'released', ARGV[6])
if err then
  return err
end
for _, key in ipairs(at) do
  redis.call('XGROUP', 'DELCONSUMER', key, group, consumer)
end
return {'done', pending, idle}
