-- Stands before the scripts that ask how far a consumer group is behind. They must not use
-- XINFO STREAM: it returns the first and the last entry whole, however large they are.

local function named(key, name)
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local g = {}
    for i = 1, #flat, 2 do
      g[flat[i]] = flat[i + 1]
    end
    if g.name == name then return g end
  end
end

-- A group that exists for the time of one question. A group of this name that is not ours
-- stays, and the question has no answer.
local PROBE = '\0redischannels:probe'

-- Returns what XINFO GROUPS says of a group at an ID, of which `read` entries were read, or
-- nothing is known without that. From Redis 7 on its lag is exact without a number, and nil in
-- the middle of the stream or before a deleted entry; with 0 read it is the number of entries
-- that were ever added, unless an entry behind the ID was deleted. Returns nil where the
-- group cannot be created: before Redis 7 with a number, without memory, or without permission.
local function probe(key, id, read)
  -- Nothing may be written before: without memory the creation must fail, not what comes later.
  if redis.acl_check_cmd and not redis.acl_check_cmd('XGROUP', 'DESTROY', key, PROBE) then return nil end
  local created
  if read then
    created = redis.pcall('XGROUP', 'CREATE', key, PROBE, id, 'ENTRIESREAD', read)
  else
    created = redis.pcall('XGROUP', 'CREATE', key, PROBE, id)
  end
  if created.err then return nil end
  local g = named(key, PROBE)
  redis.call('XGROUP', 'DESTROY', key, PROBE)
  return g
end

-- Returns the greatest ID that a stream ever had, and the number of entries that were ever added
-- to it: nil before Redis 7. Returns nil where a probe is not possible.
local function ends(key)
  if redis.call('XLEN', key) == 0 then -- then it has no entry to return
    local flat, s = redis.call('XINFO', 'STREAM', key), {}
    for i = 1, #flat, 2 do
      s[flat[i]] = flat[i + 1]
    end
    return s['last-generated-id'], s['entries-added']
  end
  local newest = probe(key, '$', 0) or probe(key, '$')
  local all = newest
  if newest and (newest.lag or 0) == 0 then -- the newest entry was deleted, or Redis is older
    all = probe(key, '18446744073709551615-18446744073709551615', 0)
  end
  return newest and newest['last-delivered-id'], all and all.lag
end

-- Reports whether an entry with an ID or before it is left in a stream that has `length` entries, of
-- all those that were ever added. Only where an entry behind the ID was deleted it reads one.
local function left(key, id, length, added)
  local at = probe(key, id)
  if at.lag then return at.lag ~= length end
  return probe(key, id, 0).lag == added or #redis.call('XRANGE', key, '-', id, 'COUNT', 1) > 0
end

-- Counts the entries after an ID, `limit` at most, and returns the ID to continue with or ''.
local function count(key, id, limit)
  local entries = redis.call('XRANGE', key, '(' .. id, '+', 'COUNT', limit)
  return #entries, #entries == limit and entries[limit][1] or ''
end

-- The number of entries after an ID: exactly or, with the ID to continue with, the first of
-- them. `reported` is the lag of the server, nil before Redis 7. It is wrong after trimming, deleting, XGROUP
-- SETID, and a restart from an append-only file; a 0 only says that looking is cheap.
local function behind(key, id, reported, limit)
  local length = redis.call('XLEN', key)
  if length == 0 then return 0, '' end
  local g
  if reported ~= nil and reported ~= 0 then g = probe(key, id) end
  if g and g.lag then return g.lag, '' end
  local n, more = count(key, id, limit)
  -- Without an answer of the probe: whether anything of what is left was delivered.
  if more ~= '' and not g and #redis.call('XRANGE', key, '-', id, 'COUNT', 1) == 0 then
    return length, ''
  end
  return n, more
end
