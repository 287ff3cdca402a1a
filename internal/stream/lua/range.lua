-- Reads a part of a stream. A script for the same reason as own.lua.
-- KEYS[1] stream
-- ARGV[1] start, ARGV[2] end, ARGV[3] limit
-- Returns entry ID and fields in turn.
local out = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])) do
  out[#out + 1] = entry[1]
  out[#out + 1] = entry[2]
end
return out
