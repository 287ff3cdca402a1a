-- Ends the pause of a group. common.lua stands before this text.
-- Returns 1 if it was paused, 0 otherwise. A further call after a lost reply returns 0.
local other = collision(control, topic) or missing()
if other then
  return other
end
local left = paused(control, group)
local probe = redis.pcall('HDEL', control, '') -- changes nothing
if failed(probe) then
  return failure(probe)
end
if left ~= 0 then
  local err = note('resume')
  if err then
    return err
  end
end
redis.call('HDEL', control, 'pause:' .. group)
return left ~= 0 and 1 or 0
