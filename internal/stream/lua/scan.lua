-- One step of a claim scan: takes over entries that no consumer has touched for a time, without
-- counting it as a delivery. It also keeps the consumer's idle time low, by which others see
-- that it is alive: before Redis 7.2 a blocked or empty read does not. The history read is behind
-- all entries and takes nothing.
-- paused.lua stands before this text.
-- KEYS[1] stream, then those that come behind it in the scan, then due sets of delayed messages, and the
-- topic's control record, looked at first: nothing can fail behind a claim, whose entries would be claimed
-- unseen
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] consumer that holds released entries
-- ARGV[4] min idle time in ms, ARGV[5] cursor in the first stream, ARGV[6] how many to claim at most,
-- 0 for none, ARGV[7] how many of the keys are streams, ARGV[8] how many are due sets,
-- ARGV[9] how often the group had been sought when this consumer took its name
-- One stream is scanned: the first in which something is pending. Nothing is claimed while the group is
-- paused, or by a consumer that is older than a seek.
-- Returns {which, from 0 on; cursor to continue with, {claimed IDs}, {those of them that were released},
-- {IDs that were trimmed and have left the group},
-- {for each due set ms until its first entry is due, -1 if it is empty, 0 if it is no sorted set},
-- {for how long the group is paused, how often it was sought, and where to, see paused.lua}, which may be empty}.
local group, consumer, holder = ARGV[1], ARGV[2], ARGV[3]
local cursor, left, streams, sets = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

-- XAUTOCLAIM looks at ten entries for each that it may claim. A step looks at this many.
local looks = 1000

-- One command for all of them where they are empty, as they mostly are.
local none = sets > 0 and redis.pcall('EXISTS', unpack(KEYS, streams + 1, streams + sets)) == 0
local waits, now = {}, nil
for i = streams + 1, streams + sets do
  local first = none and {} or redis.pcall('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  local wait = -1
  if first.err then
    if not string.find(first.err, 'WRONGTYPE', 1, true) then
      return {err = (string.gsub(first.err, '^%-', ''))}
    end
    wait = 0 -- the mover reports it
  elseif first[2] then
    if not now then
      local t = redis.call('TIME')
      now = t[1] * 1000 + math.floor(t[2] / 1000)
    end
    wait = math.max(0, math.ceil(first[2] - now))
  end
  waits[#waits + 1] = wait
end

local pause = {}
if #KEYS > streams + sets then
  local still = paused(KEYS[#KEYS], group)
  if still then
    pause = {still, sought(KEYS[#KEYS], group)}
    if still ~= 0 or pause[2] > tonumber(ARGV[9]) then left = 0 end
  end
end

local touch = {'XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS'}
for i = 1, streams do
  touch[7 + i], touch[7 + streams + i] = KEYS[i], '18446744073709551614-0'
end
redis.call(unpack(touch))
local claimed, returned, trimmed, at = {}, {}, {}, 1
if left > 0 and cursor == '0-0' then
  while at <= streams and #redis.call('XPENDING', KEYS[at], group, '-', '+', 1) == 0 do
    at = at + 1
  end
end
if left == 0 or at > streams then
  return {streams - 1, cursor, claimed, returned, trimmed, waits, pause} -- the usual reply of an idle group
end
local key = KEYS[at]
local released = {}
for _, p in ipairs(redis.call('XPENDING', key, group, cursor, '+', looks + 10 * left, holder)) do
  released[p[1]] = true
end
repeat
  local reply = redis.call('XAUTOCLAIM', key, group, consumer, ARGV[4], cursor, 'COUNT', left, 'JUSTID')
  cursor = reply[1]
  looks = looks - 10 * left
  for _, id in ipairs(reply[2]) do
    if id then
      left = left - 1
      claimed[#claimed + 1] = id
      if released[id] then returned[#returned + 1] = id end
    end
  end
  for _, id in ipairs(reply[3] or {}) do
    trimmed[#trimmed + 1] = id
  end
until left <= 0 or looks <= 0 or cursor == '0-0'
if #returned > 0 and #redis.call('XPENDING', key, group, '-', '+', 1, holder) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', key, group, holder)
end
return {at - 1, cursor, claimed, returned, trimmed, waits, pause}
