-- Reports whether a stream, and what of it a group has still to read, are below bounds.
-- behind.lua stands before this text.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] greatest lag or 0, ARGV[3] greatest length or 0
-- ARGV[4] '1' if entries may be counted
-- Returns 1 if both are below, 0 otherwise; 1 for a missing stream. For a missing group
-- every entry counts. -1 if entries had to be counted.
local key, group, maxlag, maxlen = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', key) == 0 then
  return 1
end
local length = redis.call('XLEN', key)
if maxlen > 0 and length >= maxlen then
  return 0
end
if maxlag == 0 or length < maxlag then
  return 1
end
local g = named(key, group)
if not g then
  return 0
end
-- A lag that the server returns may be too great, see behind.lua.
if g.lag and g.lag < maxlag then
  return 1
end
if ARGV[4] ~= '1' then
  return -1
end
return (behind(key, g['last-delivered-id'], g.lag, maxlag)) < maxlag and 1 or 0
