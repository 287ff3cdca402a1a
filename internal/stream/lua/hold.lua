-- Renews the claims of entries and sets their delivery counts, each only if it is still owned.
-- paused.lua stands before this text.
-- KEYS[1] stream, KEYS[2] control record of the topic, which may be left out
-- ARGV[1] group, ARGV[2] consumer
-- ARGV[3] how often the group had been sought when the consumer took its name; see superseded
-- ARGV[4..] pairs of entry ID and delivery count to set, -1 to leave the count
-- Returns one number per entry: 1 owned and done, 0 owned by another consumer,
-- -1 not pending in the group, -2 was owned but is trimmed from the stream.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local newer = superseded(KEYS[2], group, ARGV[3])
if newer then
  return newer
end
local out = {}
for i = 4, #ARGV, 2 do
  local id, count = ARGV[i], ARGV[i + 1]
  local state = 1
  local pending = redis.call('XPENDING', key, group, id, id, 1, consumer)
  if #pending == 0 then
    state = #redis.call('XPENDING', key, group, id, id, 1) == 0 and -1 or 0
  else
    count = count ~= '-1' and count or pending[1][4]
    if #redis.call('XCLAIM', key, group, consumer, 0, id, 'RETRYCOUNT', count, 'JUSTID') == 0 then
      state = -2
    end
  end
  out[#out + 1] = state
end
return out
