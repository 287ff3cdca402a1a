-- Returns what belongs to a topic, and nothing of the content of its entries.
-- KEYS[1] stream, KEYS[2] dead-letter stream, KEYS[3] due set of the topic, KEYS[4] control
-- Returns {length, entries that were ever added or -1, groups, ID of the first entry or '', of the last or '',
-- bytes of memory, dead letters, delayed messages, retention or '', 1 if there is a stream}.
local stream = KEYS[1]
local flat, s = redis.pcall('XINFO', 'STREAM', stream), {}
if flat.err then
  if not string.find(flat.err, 'no such key', 1, true) then
    return {err = (string.gsub(flat.err, '^%-', ''))} -- Redis 6.2 puts a dash before some
  end
  flat = {}
end
for i = 1, #flat, 2 do
  s[flat[i]] = flat[i + 1]
end

local function id(entry)
  return entry and entry[1] or ''
end

return {
  s['length'] or 0, s['entries-added'] or -1, s['groups'] or 0, id(s['first-entry']), id(s['last-entry']),
  redis.call('MEMORY', 'USAGE', stream) or 0, redis.call('XLEN', KEYS[2]), redis.call('ZCARD', KEYS[3]),
  redis.call('HGET', KEYS[4], 'retention') or '', #flat > 0 and 1 or 0,
}
