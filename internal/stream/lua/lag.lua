-- Returns where a group stands, and counts entries that were not delivered to it.
-- behind.lua stands before this text.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] the ID up to which entries are counted already, or '' to begin,
-- ARGV[3] how many to count at most
-- Returns {pending, consumers, last-delivered-id, lag counted in this call, ID to continue
-- with or ''}.
local key, group, from, limit = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local g = named(key, group)
if not g then
  return redis.error_reply('NOGROUP no such consumer group')
end
local last = g['last-delivered-id']
local n, more
if from == '' then
  n, more = behind(key, last, g.lag, limit)
else
  n, more = count(key, from, limit)
end
return {g.pending, g.consumers, last, n, more}
