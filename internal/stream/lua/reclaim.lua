-- Takes over released entries whose back-off is over, the oldest first.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] consumer that holds released entries
-- ARGV[4] min idle time in ms, ARGV[5] how many at most
-- Returns {{claimed IDs}, {IDs that were trimmed and have left the group}}.
local key, group, consumer, holder = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local claimed, trimmed = {}, {}
for _, p in ipairs(redis.call('XPENDING', key, group, 'IDLE', ARGV[4], '-', '+', ARGV[5], holder)) do
  if #redis.call('XCLAIM', key, group, consumer, 0, p[1], 'JUSTID') > 0 then
    claimed[#claimed + 1] = p[1]
  else
    trimmed[#trimmed + 1] = p[1]
  end
end
if #claimed > 0 and #redis.call('XPENDING', key, group, '-', '+', 1, holder) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', key, group, holder)
end
return {claimed, trimmed}
