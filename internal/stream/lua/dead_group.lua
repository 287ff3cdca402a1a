-- Finds out to which consumer groups dead letters belong: a script must declare the keys that it uses,
-- and the return stream is that of the group.
-- dead_common.lua stands before this text.
-- KEYS[1] dead-letter stream
-- ARGV[1] topic, ARGV[2...] IDs of dead letters
-- Returns {outcome, group} per dead letter: '' and its group, or 'not found' or 'foreign' as in
-- dead_requeue.lua and ''.
local out = {}
for i = 2, #ARGV do
  local letter = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  local topic, group
  if letter then
    topic, group = block(letter[2])
  end
  if not letter then
    out[i - 1] = {'not found', ''}
  elseif topic ~= ARGV[1] then
    out[i - 1] = {'foreign', ''}
  else
    out[i - 1] = {'', group}
  end
end
return out
