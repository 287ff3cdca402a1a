-- Returns entries to the group: each, only if it is still owned, becomes pending for the
-- consumer that holds what was released, where any consumer claims it.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] consumer that holds released entries
-- ARGV[4..] triples of entry ID, idle time in ms to set, and delivery count to set
-- Returns one number per entry: 1 owned and released, 0 owned by another consumer,
-- -1 not pending in the group, -2 was owned but is trimmed from the stream.
local key, group, consumer, holder = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local out = {}
for i = 4, #ARGV, 3 do
  local id, idle, count = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local state = 1
  if #redis.call('XPENDING', key, group, id, id, 1, consumer) == 0 then
    state = #redis.call('XPENDING', key, group, id, id, 1) == 0 and -1 or 0
  elseif #redis.call('XCLAIM', key, group, holder, 0, id, 'IDLE', idle, 'RETRYCOUNT', count, 'JUSTID') == 0 then
    state = -2
  end
  out[#out + 1] = state
end
return out
