-- Returns for how many ms a group is paused, 0 if it is not, -1 if until it is resumed; why; and
-- how often it was sought, and where to.
-- paused.lua stands before this text. KEYS[1] control, ARGV[1] group
local left, reason = paused(KEYS[1], ARGV[1])
if not left then
  return redis.call('HGET', KEYS[1], '') -- fails in the same way
end
return {left, reason, sought(KEYS[1], ARGV[1])}
