-- Takes over released entries, the oldest first, whether or not their back-off is over.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] consumer that holds released entries
-- ARGV[4] how many at most
-- Returns {{claimed IDs}, {for how long each was idle, in ms}, {IDs that were trimmed and have left
-- the group}}.
local key, group, consumer, holder = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local claimed, idle, trimmed = {}, {}, {}
for _, p in ipairs(redis.call('XPENDING', key, group, '-', '+', ARGV[4], holder)) do
  if #redis.call('XCLAIM', key, group, consumer, 0, p[1], 'JUSTID') > 0 then
    claimed[#claimed + 1] = p[1]
    idle[#idle + 1] = p[3]
  else
    trimmed[#trimmed + 1] = p[1]
  end
end
if #claimed > 0 and #redis.call('XPENDING', key, group, '-', '+', 1, holder) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', key, group, holder)
end
return {claimed, idle, trimmed}
