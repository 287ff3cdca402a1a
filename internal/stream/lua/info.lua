-- Returns where streams begin and end, without their first and last entries'
-- fields, which may be large.
-- KEYS streams
-- Returns for each, one after the other, last-generated-id, ID of the first entry or '',
-- number of entries ever added or -1 before Redis 7, number of entries; for a missing
-- stream 0-0 and 0.
-- The command is tried in any case, so that a missing right shows at once and not when
-- the stream exists.
local out = {}
for k = 1, #KEYS do
  local info = redis.pcall('XINFO', 'STREAM', KEYS[k])
  local f = {}
  if not info.err then
    for i = 1, #info, 2 do
      f[info[i]] = info[i + 1]
    end
  elseif info.err:find('no such key', 1, true) then
    f['last-generated-id'], f['entries-added'], f['length'] = '0-0', 0, 0
  else
    return info
  end
  local first = f['first-entry']
  out[#out + 1] = f['last-generated-id']
  out[#out + 1] = first and first[1] or ''
  out[#out + 1] = f['entries-added'] or -1
  out[#out + 1] = f['length']
end
return out
