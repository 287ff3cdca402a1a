-- Returns whether a stream, and what of it a group has still to read, are below bounds.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] greatest lag or 0, ARGV[3] greatest length or 0
-- Returns 1 if both are below, 0 otherwise; 1 for a missing stream. For a missing group
-- every entry counts.
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
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local g = {}
  for i = 1, #flat, 2 do
    g[flat[i]] = flat[i + 1]
  end
  if g.name == group then
    -- Redis reports none before 7.0 and where entries were deleted out of order.
    local lag = g.lag
    if not lag then
      local next = g['last-delivered-id']
      local entries = redis.call('XRANGE', key, '(' .. next, '+', 'COUNT', maxlag)
      lag = #entries
    end
    return lag < maxlag and 1 or 0
  end
end
return 0
