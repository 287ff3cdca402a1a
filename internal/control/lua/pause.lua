-- Pauses a group. common.lua stands before this text.
-- ARGV[4] until when in ms by the clock of this server, 0 for no end, ARGV[5] reason
-- Returns the time of this server in ms, and 1 if the group is paused so, 0 where the end is past. A group that
-- is paused so already gets no line in the audit stream: a further call after a lost reply adds none.
local other = collision(control, topic) or missing()
if other then
  return other
end
local now, stop = milliseconds(), tonumber(ARGV[4])
if stop > 0 and stop <= now then
  return {text(now), 0}
end
local field, record = 'pause:' .. group, ARGV[4] .. ' ' .. ARGV[5]
if redis.call('HGET', control, field) ~= record then
  local err = note('pause', 'until', ARGV[4], 'reason', ARGV[5])
  if err then
    return err
  end
  redis.call('HSET', control, field, record)
end
return {text(now), 1}
