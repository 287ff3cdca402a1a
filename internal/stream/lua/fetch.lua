-- Reads owned entries with their delivery counts. An entry that is trimmed from
-- the stream leaves the group.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer, ARGV[3..] entry IDs
-- Returns per entry {1, count, {name, value, ...}}, or {state}: 0 owned by another
-- consumer, -1 not pending in the group, -2 was owned but is trimmed.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local out = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local pending = redis.call('XPENDING', key, group, id, id, 1, consumer)
  if #pending == 0 then
    out[#out + 1] = {#redis.call('XPENDING', key, group, id, id, 1) == 0 and -1 or 0}
  else
    local entry = redis.call('XRANGE', key, id, id)
    if #entry == 0 then
      redis.call('XACK', key, group, id)
      out[#out + 1] = {-2}
    else
      out[#out + 1] = {1, pending[1][4], entry[1][2]}
    end
  end
end
return out
