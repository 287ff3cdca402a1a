-- Returns where a group stands, and counts entries that were not delivered to it.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] the ID up to which entries are counted already, or '' to begin,
-- ARGV[3] how many to count at most
-- Returns {pending, consumers, last-delivered-id, lag counted in this call, ID to continue
-- with or ''}.
local key, group, from, limit = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local g
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  local f = {}
  for i = 1, #flat, 2 do
    f[flat[i]] = flat[i + 1]
  end
  if f.name == group then g = f end
end
if not g then
  return redis.error_reply('NOGROUP no such consumer group')
end
local last = g['last-delivered-id']
if from == '' then
  local flat = redis.call('XINFO', 'STREAM', key)
  local s = {}
  for i = 1, #flat, 2 do
    s[flat[i]] = flat[i + 1]
  end
  if s.length == 0 or last == s['last-generated-id'] then
    return {g.pending, g.consumers, last, 0, ''}
  end
  -- The server's own lag is not used: it is wrong after trimming, and also after a
  -- restart from an append-only file, which does not keep what a group has read.
  -- Nothing of what is left was delivered.
  if #redis.call('XRANGE', key, '-', last, 'COUNT', 1) == 0 then
    return {g.pending, g.consumers, last, s.length, ''}
  end
  from = last
end
local entries = redis.call('XRANGE', key, '(' .. from, '+', 'COUNT', limit)
local more = ''
if #entries == limit then more = entries[#entries][1] end
return {g.pending, g.consumers, last, #entries, more}
