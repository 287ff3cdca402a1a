-- Stands before the scripts that ask whether a group is paused, or was sought.

-- For how many milliseconds the control record of a topic pauses a group: 0 if it does not, -1 if until it
-- is resumed; and why. Returns nothing where that cannot be read.
local function paused(control, group)
  local record = redis.pcall('HGET', control, 'pause:' .. group)
  if type(record) == 'table' then return nil end
  local stop, reason = string.match(record or '', '^(%d+) (.*)$')
  if not stop then return 0, '' end
  if stop == '0' then return -1, reason end
  local t = redis.call('TIME')
  return math.max(0, stop - t[1] * 1000 - math.floor(t[2] / 1000)), reason
end

-- How often a group was sought, and after which entry ID it began to read then: 0 and '' before, and where that
-- cannot be read.
local function sought(control, group)
  local record = redis.pcall('HGET', control, 'seek:' .. group)
  local generation, position = string.match(type(record) == 'string' and record or '', '^(%d+) (%S+) ')
  return tonumber(generation or 0), position or ''
end

-- The error for a consumer that took its name before a seek of its group, after so many of them: what it has
-- was delivered again. Nothing for other consumers, and without a control record.
local function superseded(control, group, before)
  if not control then return nil end
  local generation, position = sought(control, group)
  if generation > tonumber(before) then
    return redis.error_reply('SOUGHT ' .. generation .. ' ' .. position)
  end
end
