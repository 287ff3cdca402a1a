-- Tells where a stream begins and ends, without its first and last entries'
-- fields, which may be large.
-- KEYS[1] stream
-- Returns {last-generated-id, ID of the first entry or '', number of entries ever
-- added or -1 before Redis 7, number of entries}; for a missing stream 0-0 and 0.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {'0-0', '', 0, 0}
end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local f = {}
for i = 1, #info, 2 do
  f[info[i]] = info[i + 1]
end
local first = f['first-entry']
return {f['last-generated-id'], first and first[1] or '', f['entries-added'] or -1, f['length']}
