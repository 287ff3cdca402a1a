-- Counts entries of a stream. KEYS[1] stream, ARGV[1] after this ID, ARGV[2] up to this one, ARGV[3] how many at most
-- Returns their number, and the ID to continue after or ''.
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
return {tostring(#entries), #entries == tonumber(ARGV[3]) and entries[#entries][1] or ''}
