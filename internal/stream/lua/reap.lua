-- Removes idle consumers without pending entries, in one step with the check, so
-- that an entry delivered in between cannot vanish with its consumer.
-- less.lua stands before this text.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] this consumer, which stays, ARGV[3] idle time in ms
-- Returns {number of other consumers left that were active within that time,
-- last-delivered-id of the group, entries lost, entries lost until now, names removed ...}.
--
-- Lost are entries that were removed from the stream before they were delivered, by the
-- counters of Redis 7: those that were ever added, those that are left, and those that
-- the group has read. The first number counts while the group stands before the first
-- entry that is left: 0 otherwise, -1 when its counter is not valid. The second counts
-- when it has read everything: -1 otherwise. Servers differ in whether entries that were
-- lost stay in these numbers for ever; only their growth means something.
local key, group, self, idle = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local others, removed = 0, {}
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
  local c = {}
  for i = 1, #flat, 2 do
    c[flat[i]] = flat[i + 1]
  end
  if c.name ~= self then
    if c.idle < idle then
      others = others + 1
    elseif c.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', key, group, c.name)
      removed[#removed + 1] = c.name
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

local out = {others, last, lost, until_now}
for _, name in ipairs(removed) do
  out[#out + 1] = name
end
return out
