-- Returns what a seek would find. seek_common.lua stands before this text.
-- Returns {for how long the group is paused, see paused.lua; last-delivered-id of the group; the greatest ID of the
-- stream; ID of its first entry or ''; 1 if entries before that were removed; IDs of pending entries up to the
-- new position; retries that are deferred; entries of the return stream; consumers at work ...}.
local other = collision(control, topic) or missing()
if other then
  return other
end
local flat, info = redis.call('XINFO', 'STREAM', stream), {}
for i = 1, #flat, 2 do
  info[flat[i]] = flat[i + 1]
end
local newest, first = info['last-generated-id'], info['first-entry']
local position = ARGV[4] == '$' and newest or ARGV[4]
local pending = 0
each_pending(stream, '-', function(some)
  for _, p in ipairs(some) do
    if not less(position, p[1]) then pending = pending + 1 end
  end
end)
return {text((paused(control, group))), named(stream, group)['last-delivered-id'], newest, first and first[1] or '',
  info['entries-added'] ~= info['length'] and '1' or '0', text(pending), text(redis.call('ZCARD', due)), text(redis.call('XLEN', returns)), unpack(busy(streams()))}
