-- Returns entries to the group: each, only if it is still owned, becomes pending for the
-- consumer that holds what was released, where any consumer claims it.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] consumer that holds released entries
-- ARGV[4] the server's time in ms from which on nothing is done
-- ARGV[5..] triples of entry ID, idle time in ms to set, and delivery count to set
-- Returns one number per entry: 1 owned and released, 0 owned by another consumer,
-- -1 not pending in the group, -2 was owned but is trimmed from the stream, -3 too late.
local key, group, consumer, holder = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local t = redis.call('TIME')
local late = t[1] * 1000 + math.floor(t[2] / 1000) >= tonumber(ARGV[4])
local out = {}
for i = 5, #ARGV, 3 do
  local id, idle, count = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local state = 1
  if late then
    state = -3
  elseif #redis.call('XPENDING', key, group, id, id, 1, consumer) == 0 then
    state = #redis.call('XPENDING', key, group, id, id, 1) == 0 and -1 or 0
  elseif #redis.call('XCLAIM', key, group, holder, 0, id, 'IDLE', idle, 'RETRYCOUNT', count, 'JUSTID') == 0 then
    state = -2
  end
  out[#out + 1] = state
end
return out
