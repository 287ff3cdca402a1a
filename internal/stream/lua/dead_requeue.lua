-- Gives dead letters back to the consumer groups that failed, and to no other group: each
-- original becomes pending again, so that any consumer of its group claims it.
-- dead_common.lua and less.lua stand before this text.
--
-- KEYS[1] topic, KEYS[2] dead-letter stream (same hash slot)
-- ARGV[1] consumer to hold the entries until they are claimed
-- ARGV[2...] IDs of dead letters
--
-- Returns {outcome, entry ID, group} per dead letter, in the order of ARGV, or the error reply of
-- the first that failed: nothing of it has changed, and those before it are done. The outcomes:
--   'requeued'       pending again with count 0 and idle since the epoch; the dead letter is deleted
--   'not found'      the dead-letter stream has no such entry (entry ID and group are '')
--   'foreign'        the entry is no dead letter of this topic (entry ID and group are '')
--   'group missing'  the group or the topic does not exist
--   'still pending'  the group has the entry already
--   'not retained'   the topic does not have the entry any more
--   'not delivered'  the group stands before the entry and will come to it

local topic, dead, holder = KEYS[1], KEYS[2], ARGV[1]

-- The last ID that the group was given, read once per group.
local delivered = {}
local function last(group)
  if not delivered[group] then
    local groups = redis.pcall('XINFO', 'GROUPS', topic)
    if failed(groups) then
      return nil, groups
    end
    for _, info in ipairs(groups) do
      local field = {}
      for i = 1, #info, 2 do
        field[info[i]] = info[i + 1]
      end
      delivered[field['name']] = field['last-delivered-id']
    end
  end
  return delivered[group]
end

local function requeue(id)
  local letter = redis.pcall('XRANGE', dead, id, id)
  if failed(letter) then
    return letter
  end
  if #letter == 0 then
    return {'not found', '', ''}
  end
  local from, group, entry = block(letter[1][2])
  if from ~= topic then
    return {'foreign', '', ''}
  end
  local function answer(outcome)
    return {outcome, entry, group}
  end

  local pending = redis.pcall('XPENDING', topic, group, entry, entry, 1)
  if failed(pending) then
    if string.find(pending.err, 'NOGROUP', 1, true) then
      return answer('group missing')
    end
    return pending
  end
  if #pending > 0 then
    return answer('still pending')
  end
  local original = redis.pcall('XRANGE', topic, entry, entry)
  if failed(original) then
    return original
  end
  if #original == 0 then
    return answer('not retained')
  end
  local position, unread = last(group)
  if unread then
    return unread
  end
  if less(position, entry) then
    return answer('not delivered')
  end

  -- A missing permission to delete must show before the claim: afterwards the dead letter
  -- would remain and could be requeued again. No entry has the ID 0-0.
  local probe = redis.pcall('XDEL', dead, '0-0')
  if failed(probe) then
    return probe
  end
  local claimed = redis.pcall('XCLAIM', topic, group, holder, 0, entry,
    'TIME', 0, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
  if failed(claimed) then
    return claimed
  end
  redis.call('XDEL', dead, id)
  return answer('requeued')
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
