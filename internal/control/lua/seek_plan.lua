-- Returns what a seek would find. seek_common.lua stands before this text.
-- Returns {for how long the group is paused, see paused.lua; last-delivered-id of the group; the greatest ID of the
-- stream; ID of its first entry or ''; 1 if entries before that were removed; IDs of pending entries up to the
-- new position; retries that are deferred; entries of the return stream; consumers at work ...}.
local other = collision(control, topic) or missing()
if other then
  return other
end
local length = redis.call('XLEN', stream)
local newest, added = ends(stream)
if not newest then -- no group can be created to ask for it
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  newest = last and last[1] or '0-0'
end
local position = ARGV[4] == '$' and newest or ARGV[4]
local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local pending = 0
each_pending(stream, '-', function(some)
  for _, p in ipairs(some) do
    if not less(position, p[1]) then pending = pending + 1 end
  end
end)
return {text((paused(control, group))), named(stream, group)['last-delivered-id'], newest, first and first[1] or '',
  added ~= length and '1' or '0', text(pending), text(redis.call('ZCARD', due)), text(redis.call('XLEN', returns)), unpack(busy(streams()))}
