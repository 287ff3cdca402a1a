-- Removes idle consumers without pending entries, in one step with the check, so
-- that an entry delivered in between cannot vanish with its consumer.
-- less.lua and behind.lua stand before this text.
-- KEYS[1] stream, KEYS[2] control record of the topic, KEYS[3...] other streams of the group, in which only
-- consumers are removed
-- ARGV[1] group, ARGV[2] this consumer, which stays, ARGV[3] idle time in ms after which others
-- are removed, ARGV[4] idle time in ms below which others may be alive, ARGV[5] consumer that
-- holds released entries, which never is
-- ARGV[6] 'all' to count lost entries, 'new' where none were before, 'none'
-- ARGV[7] ID of which it is asked whether it or entries before
-- it were removed, or ''
-- Returns {last-delivered-id of the group, ID of the oldest pending entry or 0-0, entries read,
-- 1 if the ID or entries before it may have been removed, entries lost, entries lost until now,
-- then of each other consumer that may be alive its name and its idle time in ms}.
--
-- Lost are entries that were removed from the stream before they were delivered, by the
-- counters of Redis 7: those that were ever added, those that are left, and those that
-- the group has read. The first number counts while the group stands before the first
-- entry that is left: 0 otherwise, -1 when its counter is not valid. The second counts
-- when it has read everything: -1 otherwise. Servers differ in whether entries that were
-- lost stay in these numbers forever; only their growth means something.
--
-- What was removed because no group needed it (trim.lua of internal/retention) is not lost.
local key, control, group, self, idle, alive = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

-- Removes consumers from a stream, and returns those that may be alive.
local function reap(stream, consumers)
  local others = {}
  for _, flat in ipairs(consumers) do
    local c = {}
    for i = 1, #flat, 2 do
      c[flat[i]] = flat[i + 1]
    end
    if c.name ~= self then
      if c.idle >= idle and c.pending == 0 then
        redis.call('XGROUP', 'DELCONSUMER', stream, group, c.name)
      elseif c.idle < alive and c.name ~= ARGV[5] then
        others[#others + 1] = c.name
        others[#others + 1] = c.idle
      end
    end
  end
  return others
end

local others = reap(key, redis.call('XINFO', 'CONSUMERS', key, group))
for i = 3, #KEYS do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[i], group)
  if not consumers.err then reap(KEYS[i], consumers) end -- the reader finds a group that is lost
end
redis.call('XGROUP', 'DESTROY', key, PROBE .. ':none') -- a missing permission shows at once
local g = named(key, group) or {}
local last, read = g['last-delivered-id'] or '0-0', g['entries-read']
local length = redis.call('XLEN', key)

-- The ID before which entries were removed that no group needed, and how many of the `gone` ones that are, or nil
-- where there are none or where this group needed some. More than are gone were those of another stream.
local function unneeded(gone)
  local floor = redis.pcall('HGET', control, 'trim-floor')
  if type(floor) ~= 'string' or string.find(redis.call('HGET', control, 'needs:' .. group) or '', ' lost$') then
    return nil, 0
  end
  local n = tonumber(redis.call('HGET', control, 'trim-removed') or 0)
  return floor, n <= (gone or n) and n or 0
end

-- Returns the two numbers.
local function lost()
  -- Most groups have read everything: that needs no probe.
  if ARGV[6] == 'none' then return 0, -1 end
  if ARGV[6] == 'new' and g.lag == 0 and read then return 0, 0 end
  local newest, added = ends(key)
  if newest == '' then newest = '0-0' end -- of miniredis, when the stream is empty
  if not added or not newest then return 0, -1 end
  if not read and last == '0-0' then read = 0 end
  if last == newest then
    return 0, read and added - read or -1
  end
  if added == length then return 0, -1 end
  if length > 0 and left(key, last, length, added) then return 0, -1 end
  local _, without = unneeded(added - length)
  if read then return math.max(0, added - length - math.max(read, without)), -1 end
  return added - length > without and -1 or 0, -1
end

-- Reports whether an entry with this ID or before it may have been removed.
local function removed(id)
  local _, added = ends(key)
  local floor, without = unneeded(added and added - length)
  if floor and less(id, floor) and (not added or added - length <= without) then return 0 end
  if length == 0 then return added == 0 and 0 or 1 end
  if not added then
    return #redis.call('XRANGE', key, '-', id, 'COUNT', 1) == 0 and 1 or 0
  end
  if added == length then return 0 end
  local deleted, before = probe(key, id, 0), probe(key, id)
  return (deleted.lag ~= added or before.lag == length) and 1 or 0
end

local pending = redis.call('XPENDING', key, group, '-', '+', 1)
local oldest = pending[1] and pending[1][1] or '0-0'
local gone, now = lost()
local out = {last, oldest, read or -1, ARGV[7] ~= '' and removed(ARGV[7]) or 0, gone, now}
for _, value in ipairs(others) do
  out[#out + 1] = value
end
return out
