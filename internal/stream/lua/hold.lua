-- Renews, counts or hands back entries, each only if it is still owned.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer
-- ARGV[3] idle time in ms to set, or -1 to start it anew
-- ARGV[4..] pairs of entry ID and delivery count to set, -1 to leave the count
-- Returns one number per entry: 1 owned and done, 0 owned by another consumer,
-- -1 not pending in the group, -2 was owned but is trimmed from the stream.
local key, group, consumer, idle = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local out = {}
for i = 4, #ARGV, 2 do
  local id, count = ARGV[i], ARGV[i + 1]
  local state = 1
  local pending = redis.call('XPENDING', key, group, id, id, 1, consumer)
  if #pending == 0 then
    state = #redis.call('XPENDING', key, group, id, id, 1) == 0 and -1 or 0
  else
    local args = {'XCLAIM', key, group, consumer, 0, id}
    if idle ~= '-1' then
      args[#args + 1] = 'IDLE'
      args[#args + 1] = idle
    end
    args[#args + 1] = 'RETRYCOUNT'
    args[#args + 1] = count ~= '-1' and count or pending[1][4]
    args[#args + 1] = 'JUSTID'
    if #redis.call(unpack(args)) == 0 then
      state = -2
    end
  end
  out[#out + 1] = state
end
return out
