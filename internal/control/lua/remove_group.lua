-- Removes a group with everything that waits for it. common.lua stands before this text.
-- KEYS[4] return stream of the group, KEYS[5] its due set, KEYS[6] stored entries
-- ARGV[4] MinIdle of the group in ms where none is noted, ARGV[5] consumer that holds released entries, which is at work
-- never, ARGV[6] '1' if nothing is to be changed
-- Returns {number of consumers at work, entries that were pending, returned, deferred, then the names of
-- those consumers}; with one of them nothing was done. A group that is deleted already is removed where the
-- record knows it.
local back, due, delayed = KEYS[4], KEYS[5], KEYS[6]
local other = collision(control, topic)
if other then
  return other
end
local fields, known = {}, false
for i, name in ipairs({'needs:', 'min-idle:', 'consumer-timeout:', 'pause:'}) do
  fields[i] = name .. group
  known = known or redis.call('HEXISTS', control, fields[i]) == 1
end
local gone = missing()
if gone and not known then
  return gone
end

local found = {0, 0, 0, redis.call('ZCARD', due)}
local alive = tonumber(redis.call('HGET', control, 'min-idle:' .. group) or ARGV[4])
for _, flat in ipairs(gone and {} or redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local c = {}
  for i = 1, #flat, 2 do
    c[flat[i]] = flat[i + 1]
  end
  found[2] = found[2] + c.pending
  if c.idle < alive and c.name ~= ARGV[5] then
    found[1] = found[1] + 1
    found[#found + 1] = c.name
  end
end
if redis.call('EXISTS', back) == 1 then
  found[3] = redis.call('XLEN', back)
end
if found[1] > 0 or ARGV[6] == '1' then
  return found
end

-- What fails for a missing permission fails here, where the server can say so.
if redis.acl_check_cmd then
  for _, cmd in ipairs({{'XGROUP', 'DESTROY', stream, group}, {'DEL', back, due}, {'HDEL', delayed, ''}, {'HDEL', control, ''}}) do
    if not redis.acl_check_cmd(unpack(cmd)) then
      return redis.call(unpack(cmd))
    end
  end
end
local err = note('remove group', 'pending', found[2], 'returned', found[3], 'deferred', found[4])
if err then
  return err
end
if not gone then
  redis.call('XGROUP', 'DESTROY', stream, group)
end
local ids = redis.call('ZRANGE', due, 0, -1)
for i = 1, #ids, 1000 do -- unpack ends at 8,000 values
  redis.call('HDEL', delayed, unpack(ids, i, math.min(i + 999, #ids)))
end
redis.call('DEL', back, due)
redis.call('HDEL', control, unpack(fields))
return found
