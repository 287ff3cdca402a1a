-- Gives dead letters back to the consumer group that failed, and to no other group: each becomes an
-- entry of the group's return stream.
-- dead_common.lua and less.lua stand before this text.
--
-- KEYS[1] topic, KEYS[2] dead-letter stream, KEYS[3] return stream of the group (same hash slot)
-- ARGV[1] group
-- ARGV[2...] IDs of dead letters of the group
--
-- Returns {outcome, entry ID} per dead letter, in the order of ARGV, or the error reply of the first
-- that failed: nothing of it has changed, and those before it are done. The outcomes:
--   'requeued'       appended to the return stream, with no deliveries counted; the dead letter is deleted
--   'not found'      the dead-letter stream has no such entry (entry ID is '')
--   'foreign'        the entry is no dead letter of this topic and group (entry ID is '')
--   'group missing'  the group or the topic does not exist
--   'no reader'      the group has no return stream: no consumer of this library has ever read in it
--   'still pending'  the group has the entry already
--   'not delivered'  the group stands before the entry and will come to it
--   'too large'      the dead letter has too many fields for one call in Lua

local topic, dead, back, group = KEYS[1], KEYS[2], KEYS[3], ARGV[1]

-- The last ID that the group was given in a stream, or nil without the group or the stream, or an
-- error as the second result.
local function last(stream)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if failed(groups) then
    if string.find(groups.err, 'no such key', 1, true) then return nil end
    return nil, groups
  end
  for _, info in ipairs(groups) do
    local field = {}
    for i = 1, #info, 2 do
      field[info[i]] = info[i + 1]
    end
    if field['name'] == group then return field['last-delivered-id'] end
  end
end

local delivered, unread = last(topic)
if unread then
  return failure(unread)
end
local reader, unreadable = last(back)
if unreadable then
  return failure(unreadable)
end

local function requeue(id)
  local letter = redis.pcall('XRANGE', dead, id, id)
  if failed(letter) then
    return letter
  end
  if #letter == 0 then
    return {'not found', ''}
  end
  local fields = letter[1][2]
  local from, of, entry = block(fields)
  if from ~= topic or of ~= group then
    return {'foreign', ''}
  end
  if not delivered then
    return {'group missing', entry}
  end
  local pending = redis.pcall('XPENDING', topic, group, entry, entry, 1)
  if failed(pending) then
    return pending
  end
  if #pending > 0 then
    return {'still pending', entry}
  end
  if less(delivered, entry) then
    return {'not delivered', entry}
  end
  if not reader then
    return {'no reader', entry}
  end
  if #fields > 7900 then
    return {'too large', entry}
  end
  -- A missing permission to delete must show before the append: afterwards the dead letter
  -- would remain and could be requeued again. No entry has the ID 0-0.
  local probe = redis.pcall('XDEL', dead, '0-0')
  if failed(probe) then
    return probe
  end
  local call, reason = {'XADD', back, '*'}, fields[#fields - 12]
  for i = 1, #fields - 14 do
    call[#call + 1] = fields[i]
  end
  for _, value in ipairs({'_return_entry_id', entry, '_return_reason', reason, '_return_count', '0'}) do
    call[#call + 1] = value
  end
  local added = redis.pcall(unpack(call))
  if failed(added) then
    return added
  end
  redis.call('XDEL', dead, id)
  return {'requeued', entry}
end

local answers = {}
for i = 2, #ARGV do
  local answer = requeue(ARGV[i])
  if failed(answer) then
    return failure(answer)
  end
  answers[i - 1] = answer
end
return answers
