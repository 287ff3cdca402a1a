-- Removes idle consumers without pending entries, in one step with the check, so
-- that an entry delivered in between cannot vanish with its consumer.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] this consumer, which stays, ARGV[3] idle time in ms
-- Returns {number of other consumers left that were active within that time or
-- have pending entries, last-delivered-id of the group, names removed ...}.
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
local last = '0-0'
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local g = {}
  for i = 1, #flat, 2 do
    g[flat[i]] = flat[i + 1]
  end
  if g.name == group then
    last = g['last-delivered-id']
  end
end
local out = {others, last}
for _, name in ipairs(removed) do
  out[#out + 1] = name
end
return out
