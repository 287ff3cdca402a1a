-- Reads owned entries with their delivery counts. An entry that is trimmed from
-- the stream leaves the group.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] bytes, ARGV[4..] entry IDs
-- Returns for each of the first entries, until they have that many bytes together,
-- {1, count, {name, value, ...}}, or {state}: 0 owned by another consumer, -1 not pending
-- in the group, -2 was owned but is trimmed.
local key, group, consumer, room = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local out = {}
for i = 4, #ARGV do
  if room <= 0 then break end
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
      for _, value in ipairs(entry[1][2]) do
        room = room - #value
      end
      out[#out + 1] = {1, pending[1][4], entry[1][2]}
    end
  end
end
return out
