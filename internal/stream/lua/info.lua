-- Tells where a stream begins and ends, without its first and last entries'
-- fields, which may be large.
-- KEYS[1] stream
-- Returns {last-generated-id, ID of the first entry or '', number of entries ever
-- added or -1 before Redis 7, number of entries}; for a missing stream 0-0 and 0.
-- The command is tried in any case, so that a missing right shows at once and not when
-- the stream exists.
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then
  if info.err:find('no such key', 1, true) then return {'0-0', '', 0, 0} end
  return info
end
local f = {}
for i = 1, #info, 2 do
  f[info[i]] = info[i + 1]
end
local first = f['first-entry']
return {f['last-generated-id'], first and first[1] or '', f['entries-added'] or -1, f['length']}
