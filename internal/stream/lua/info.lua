-- Returns where streams begin and end, without their first and last entries, which may be large.
-- less.lua and behind.lua stand before this text.
-- KEYS streams
-- ARGV for each stream the ID after which a reader reads, and the ID of the first entry that it
-- has read there or ''
-- Returns for each, one after the other, last-generated-id, the ID of the first entry, number of
-- entries ever added or -1 before Redis 7, number of entries; for a missing stream 0-0 and 0.
-- Instead of the ID of the first entry it is the reader's where an entry at or before that is
-- left; '' if none is left, or where it does not matter.

-- A user that may only read, and Redis before version 7, have nothing but XINFO STREAM.
local function allowed(key)
  local check = redis.acl_check_cmd
  return check and check('XINFO', 'STREAM', key) and check('XINFO', 'GROUPS', key) and check('XLEN', key)
    and check('XRANGE', key, '-', '+') and check('XGROUP', 'CREATE', key, PROBE, '$')
    and check('XGROUP', 'DESTROY', key, PROBE)
end

local function first(key, last, length, added, after, read)
  if not less(after, last) or (read == '' and added == length) then return '' end
  if left(key, after, length, added) then return after end
  if read ~= '' and probe(key, read).lag == length - 1 then return read end
  return redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1][1]
end

-- Returns nil where nothing can be asked without reading entries, and where there are none.
local function look(key, after, read)
  local length = allowed(key) and redis.pcall('XLEN', key)
  if type(length) ~= 'number' or length == 0 then return nil end
  local last, added = ends(key)
  if not added then return nil end
  return last, first(key, last, length, added, after, read), added, length
end

local function info(key)
  local reply = redis.pcall('XINFO', 'STREAM', key)
  if reply.err then
    if reply.err:find('no such key', 1, true) then return '0-0', '', 0, 0 end
    return reply
  end
  local f = {}
  for i = 1, #reply, 2 do
    f[reply[i]] = reply[i + 1]
  end
  local entry = f['first-entry']
  return f['last-generated-id'], entry and entry[1] or '', f['entries-added'] or -1, f['length']
end

local out = {}
for k = 1, #KEYS do
  local last, oldest, added, length = look(KEYS[k], ARGV[2 * k - 1], ARGV[2 * k])
  if not last then
    last, oldest, added, length = info(KEYS[k])
  end
  if type(last) == 'table' then return last end
  for _, value in ipairs({last, oldest, added, length}) do
    out[#out + 1] = value
  end
end
return out
