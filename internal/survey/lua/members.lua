-- Returns the consumers of a group, in the topic and in the group's return stream together.
-- KEYS[1] stream, KEYS[2] return stream, KEYS[3] control
-- ARGV[1] group
-- Returns {ID of the oldest pending entry of the topic or '', MinIdle of the group in ms or '', entries that were
-- ever added to the topic or -1, and for each consumer its name, pending entries, and for how many ms it was idle}.
local stream, back, group = KEYS[1], KEYS[2], ARGV[1]
local names, pending, idle = {}, {}, {}

local function add(reply)
  for _, flat in ipairs(reply) do
    local c = {}
    for i = 1, #flat, 2 do
      c[flat[i]] = flat[i + 1]
    end
    if not pending[c.name] then
      names[#names + 1], pending[c.name], idle[c.name] = c.name, 0, c.idle
    end
    pending[c.name] = pending[c.name] + c.pending
    idle[c.name] = math.min(idle[c.name], c.idle)
  end
end

add(redis.call('XINFO', 'CONSUMERS', stream, group))
local returned = redis.pcall('XINFO', 'CONSUMERS', back, group)
if not returned.err then
  add(returned)
elseif not string.find(returned.err, 'no such key', 1, true) and not string.find(returned.err, 'NOGROUP', 1, true) then
  return {err = (string.gsub(returned.err, '^%-', ''))} -- Redis 6.2 puts a dash before some
end

local oldest = redis.call('XPENDING', stream, group)[2]
local flat, added = redis.call('XINFO', 'STREAM', stream), -1
for i = 1, #flat, 2 do
  if flat[i] == 'entries-added' then
    added = flat[i + 1]
  end
end
local out = {oldest or '', redis.call('HGET', KEYS[3], 'min-idle:' .. group) or '', added}
for _, name in ipairs(names) do
  out[#out + 1] = name
  out[#out + 1] = pending[name]
  out[#out + 1] = idle[name]
end
return out
