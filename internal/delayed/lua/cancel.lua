-- Takes entries out of the store before they are due.
-- common.lua stands before this text.
-- KEYS[1] due set, KEYS[2] delayed
-- ARGV delayed IDs
-- Returns one number per ID: 1 it was taken out, 0 there is none, any more. An error reply means that
-- nothing was taken out. After a lost reply a further call returns 0 for those that the first one
-- has taken out.
redis.call('HLEN', KEYS[2]) -- fails where it is no hash
local out, found, seen = {}, {}, {}
for i, id in ipairs(ARGV) do
  out[i] = not seen[id] and redis.call('ZSCORE', KEYS[1], id) and 1 or 0
  seen[id] = true
  if out[i] == 1 then
    found[#found + 1] = id
  end
end
if #found > 0 then
  local probe = redis.pcall('HDEL', KEYS[2], '') -- changes nothing
  if failed(probe) then
    return failure(probe)
  end
  local removed = redis.pcall('ZREM', KEYS[1], unpack(found))
  if failed(removed) then
    return failure(removed)
  end
  redis.call('HDEL', KEYS[2], unpack(found))
end
return out
