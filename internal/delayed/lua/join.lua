-- Notes the settings of a subscription that all of its group must share.
-- common.lua, and paused.lua of internal/stream, stand before this text.
-- KEYS[1] control
-- ARGV[1] topic's name, ARGV[2] group, ARGV[3] MinIdle and ARGV[4] ConsumerTimeout in ms
-- Returns the two that were noted before, '' for none, for how long the group is paused, and how often it was
-- sought, see paused.lua.
local other = collision(KEYS[1], ARGV[1])
if other then
  return other
end
local was, changed = {}, {'topic', ARGV[1]}
for i, name in ipairs({'min-idle:', 'consumer-timeout:'}) do
  was[i] = redis.call('HGET', KEYS[1], name .. ARGV[2]) or ''
  if was[i] ~= ARGV[2 + i] then
    changed[#changed + 1] = name .. ARGV[2]
    changed[#changed + 1] = ARGV[2 + i]
  end
end
if #changed > 2 then
  redis.call('HSET', KEYS[1], unpack(changed))
end
was[3] = text(paused(KEYS[1], ARGV[2]))
was[4] = text((sought(KEYS[1], ARGV[2])))
return was
