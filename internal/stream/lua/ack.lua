-- Acknowledges entries, each only if it is still owned.
-- paused.lua stands before this text.
-- KEYS[1] stream, KEYS[2] control record of the topic, which may be left out
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] 'delete' for a return stream, which holds nothing that is
-- acknowledged, or ''
-- ARGV[4] how often the group had been sought when the consumer took its name; see superseded
-- ARGV[5..] entry IDs
-- Returns one number per entry: 1 acknowledged, 0 owned by another consumer,
-- -1 not pending in the group.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local newer = superseded(KEYS[2], group, ARGV[4])
if newer then
  return newer
end
local out = {}
for i = 5, #ARGV do
  local id = ARGV[i]
  local state = 1
  if #redis.call('XPENDING', key, group, id, id, 1, consumer) == 0 then
    state = #redis.call('XPENDING', key, group, id, id, 1) == 0 and -1 or 0
  else
    -- Deleted first: where that is refused nothing has changed.
    if ARGV[3] == 'delete' then redis.call('XDEL', key, id) end
    redis.call('XACK', key, group, id)
  end
  out[#out + 1] = state
end
return out
