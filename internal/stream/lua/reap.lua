-- Removes idle consumers without pending entries, in one step with the check, so
-- that an entry delivered in between cannot be lost with its consumer.
-- less.lua stands before this text.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] this consumer, which stays, ARGV[3] idle time in ms after which others
-- are removed, ARGV[4] idle time in ms below which others may be alive, ARGV[5] consumer that
-- holds released entries, which never is
-- Returns {last-delivered-id of the group, ID of the oldest pending entry or 0-0, ID before
-- which entries may have been removed, entries lost, entries lost until now, then of each other consumer that may be alive its name and its idle
-- time in ms}.
--
-- Lost are entries that were removed from the stream before they were delivered, by the
-- counters of Redis 7: those that were ever added, those that are left, and those that
-- the group has read. The first number counts while the group stands before the first
-- entry that is left: 0 otherwise, -1 when its counter is not valid. The second counts
-- when it has read everything: -1 otherwise. Servers differ in whether entries that were
-- lost stay in these numbers for ever; only their growth means something.
local key, group, self, idle, alive = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local others = {}
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
  local c = {}
  for i = 1, #flat, 2 do
    c[flat[i]] = flat[i + 1]
  end
  if c.name ~= self then
    if c.idle >= idle and c.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', key, group, c.name)
    elseif c.idle < alive and c.name ~= ARGV[5] then
      others[#others + 1] = c.name
      others[#others + 1] = c.idle
    end
  end
end
local last, read = '0-0', nil
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local g = {}
  for i = 1, #flat, 2 do
    g[flat[i]] = flat[i + 1]
  end
  if g.name == group then
    last, read = g['last-delivered-id'], g['entries-read']
  end
end

local flat = redis.call('XINFO', 'STREAM', key)
local s = {}
for i = 1, #flat, 2 do
  s[flat[i]] = flat[i + 1]
end
local added, newest = s['entries-added'], s['last-generated-id']
if newest == '' then newest = '0-0' end -- of miniredis, when the stream is empty
local lost, until_now = 0, -1
if added then
  if not read and last == '0-0' then read = 0 end
  local first = s['first-entry'] and s['first-entry'][1]
  if last == newest then
    if read then until_now = added - read end
  elseif added > s.length and (not first or less(last, first)) then
    lost = read and math.max(0, added - s.length - read) or -1
  end
end

local pending = redis.call('XPENDING', key, group, '-', '+', 1)
local oldest = pending[1] and pending[1][1] or '0-0'
local removed = s['first-entry'] and s['first-entry'][1] or newest
local deleted = s['max-deleted-entry-id']
if deleted and less(removed, deleted) then removed = deleted end
local out = {last, oldest, removed, lost, until_now}
for _, value in ipairs(others) do
  out[#out + 1] = value
end
return out
