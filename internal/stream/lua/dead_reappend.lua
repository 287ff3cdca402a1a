-- Appends the fields of a dead letter to its topic as a new entry, which every consumer group
-- sees, and deletes the dead letter. dead_common.lua stands before this text.
--
-- KEYS[1] topic, KEYS[2] dead-letter stream (same hash slot)
-- ARGV[1] ID of the dead letter
--
-- Returns {outcome, entry ID, group, ID of the new entry}, or an error reply, after which nothing
-- was appended. The outcomes, with '' for what is not known:
--   'reappended'  appended; the dead letter is deleted
--   'not found'   the dead-letter stream has no such entry
--   'foreign'     the entry is no dead letter of this topic
--   'too large'   too many fields for one call in Lua; nothing was done

local topic, dead, id = KEYS[1], KEYS[2], ARGV[1]

local letter = redis.pcall('XRANGE', dead, id, id)
if failed(letter) then
  return failure(letter)
end
if #letter == 0 then
  return {'not found', '', '', ''}
end
local fields = letter[1][2]
local from, group, entry = block(fields)
if from ~= topic or #fields == 14 then
  return {'foreign', '', '', ''}
end
-- unpack fails at about 8,000 values.
if #fields > 7900 then
  return {'too large', entry, group, ''}
end

local call = {'XADD', topic, '*'}
for i = 1, #fields - 14 do
  call[i + 3] = fields[i]
end
-- Nothing may be written before this append: Redis checks maxmemory only until a script's first
-- write.
local added = redis.pcall(unpack(call))
if failed(added) then
  return failure(added)
end
redis.call('XDEL', dead, id)
return {'reappended', entry, group, added}
