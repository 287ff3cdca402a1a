-- Removes the entries of a stream that no consumer group needs any more, one page of them.
-- common.lua of internal/delayed and less.lua of internal/stream stand before this text.
--
-- KEYS[1] topic, KEYS[2] control, KEYS[3] audit if an operator trims
-- ARGV[1] topic's name, ARGV[2] policy to note, or '' for the one that is noted; of an operator the policy where none
-- is noted
-- ARGV[3] most entries of a page, 0 to change nothing, ARGV[4] this trimmer, '' for an operator, ARGV[5] for how many
-- ms a trimmer that has looked leads, ARGV[6] who the operator is
--
-- Returns {state, entries removed, entries left, policy that was replaced or '', and what pins the stream:
-- kind, group, for how many ms, 1 if that is too long}. The states:
--   'trimmed'  done
--   'other'    another trimmer leads; the policy is noted
--   'none'     no policy is noted, or there is no stream
-- The kinds are 'group', 'deleted' (a group that was there before), 'required' (a group of the policy that does
-- not exist), 'none' (no group at all) and '' (nothing, or the age of the entries). An error
-- reply means that nothing was removed. After a lost reply it is called again.
--
-- What a group needs begins with its oldest pending entry, or with its last delivered one, which is one more
-- than necessary.

local stream, control, audit, topic, self = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[4]
local operator = self == ''

local other = collision(control, topic)
if other then
  return other
end
local kind = redis.call('TYPE', stream).ok
if kind ~= 'none' and kind ~= 'stream' then
  return redis.error_reply('WRONGTYPE ' .. stream .. ' holds no stream')
end

-- The reply of a command with names and values as a table.
local function named(flat)
  local t = {}
  for i = 1, #flat, 2 do
    t[flat[i]] = flat[i + 1]
  end
  return t
end

local now, record = milliseconds(), named(redis.call('HGETALL', control))
local policy, replaced = record['trim'], ''
if operator then
  policy = policy or ARGV[2]
elseif ARGV[2] ~= '' then
  replaced = policy and policy ~= ARGV[2] and policy or ''
  policy = ARGV[2]
end
if not policy then
  return {'none', 0, 0, '', '', '', 0, 0}
end

-- The policy: milliseconds of Keep and StaleAfter, IgnoreStale, and of each group its length and its name.
local keep, stale, ignore, rest = string.match(policy, '^(%d+) (%d+) ([01])(.*)$')
local required, pos = {}, 1
while keep and pos <= #rest do
  local size, start = string.match(rest, '^ (%d+):()', pos)
  if not size or start + size - 1 > #rest then
    keep = nil
    break
  end
  required[#required + 1] = string.sub(rest, start, start + size - 1)
  pos = start + size
end
if not keep then
  return redis.error_reply('ERR the policy of ' .. control .. ' cannot be read: ' .. policy)
end
keep, stale, ignore = tonumber(keep), tonumber(stale), ignore == '1'

-- What is to be set in the record. Nothing is written before the end.
local changes = {}
local function note(field, value)
  if record[field] ~= value then
    record[field] = value
    changes[#changes + 1] = field
    changes[#changes + 1] = value
  end
end
local function write() -- unpack ends at 8,000 values
  for i = 1, #changes, 1000 do
    local set = redis.pcall('HSET', control, unpack(changes, i, math.min(i + 999, #changes)))
    if failed(set) then
      return failure(set)
    end
  end
  changes = {}
end
note('topic', topic)
if not operator then
  note('trim', policy)
end

-- Who has looked a short time ago leads.
local looked, leader = string.match(record['trim-look'] or '', '^(%d+) (.*)$')
local leads = leader and leader ~= self and now >= tonumber(looked) and now - looked < tonumber(ARGV[5])
leads = leads and not operator
if leads or kind == 'none' then
  if operator then
    changes = {}
  elseif kind == 'none' and record['trim-floor'] then
    note('trim-floor', '0-0') -- those of a stream that is deleted
    note('trim-removed', '0')
  end
  return write() or {leads and 'other' or 'none', 0, 0, replaced, '', '', 0, 0}
end
if not operator then
  note('trim-look', text(now) .. ' ' .. self)
end

-- For how many ms something has lasted since a time, and whether that is too long.
local function lasted(since)
  local ms = since == '-' and 0 or math.max(0, now - since)
  return ms, since ~= '-' and ms >= stale
end

-- What the record has of a group: what it needs, since when it leaves that unread or unacknowledged (`-`: it
-- does not) or is deleted, `there` or `deleted`, and ` lost` if something was removed that it needed.
local function remembered(group)
  return string.match(record['needs:' .. group] or '', '^(%S+) (%S+) (%a+)(.*)$')
end

-- The ID of the newest entry, asked once.
local newest
local function last()
  newest = newest or (redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1] or {'0-0'})[1]
  return newest
end

-- Notes where a group stands, and returns since when it leaves that as it is.
local function observe(g, need, pending)
  local before, since, state, lost = remembered(g.name)
  if before ~= need or state == 'deleted' then
    since, lost = '-', before == need and lost or ''
  end
  if not pending and (g.lag == 0 or not less(need, last())) then
    since = '-'
  elseif since == '-' then
    since = text(now)
  end
  note('needs:' .. g.name, need .. ' ' .. since .. ' there' .. lost)
  return since
end

-- The least of all bounds, and the group that sets it, since when.
local floor, pin = keep > 0 and text(math.max(0, now - keep)) .. '-0' or nil, {'', '', '-'}
local groups, passed = {}, {}
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local g = named(flat)
  local need, oldest = g['last-delivered-id'], g.pending > 0 and redis.call('XPENDING', stream, g.name, '-', '+', 1)[1]
  if oldest and less(oldest[1], need) then
    need = oldest[1]
  end
  local since = observe(g, need, oldest)
  local _, ignored = lasted(since)
  groups[g.name] = need
  if ignore and ignored then
    passed[#passed + 1] = g.name
  elseif not floor or less(need, floor) then
    floor, pin = need, {'group', g.name, since}
  end
end

-- While a group is not there nothing is removed. One that was there, or had a subscription, may be about to be
-- restored.
local names = {}
for field in pairs(record) do
  names[#names + 1] = string.match(field, '^needs:(.*)$') or string.match(field, '^min%-idle:(.*)$')
end
table.sort(names)
local missing
local function require_group(group, what)
  local need, since, state, lost = remembered(group)
  if groups[group] then
    return
  end
  since = state == 'deleted' and since or text(now)
  note('needs:' .. group, (need or '-') .. ' ' .. since .. ' deleted' .. (lost or ''))
  missing = missing or {what, group, since}
end
for _, group in ipairs(names) do
  if record['min-idle:' .. group] or string.sub(record['needs:' .. group], 1, 2) ~= '- ' then
    require_group(group, 'deleted')
  end
end
for _, group in ipairs(required) do
  require_group(group, 'required')
end
if next(groups) or missing then
  note('trim-none', '-')
else
  note('trim-none', tonumber(record['trim-none'] or '-') and record['trim-none'] or text(now))
  missing = {'none', '', record['trim-none']}
end
if missing then
  floor, pin = nil, missing
elseif floor and less(record['trim-floor'] or '0-0', floor) then
  note('trim-floor', floor)
end

local held, long = lasted(pin[3])
local function found(removed)
  return {'trimmed', removed, redis.call('XLEN', stream), replaced, pin[1], pin[2], text(held), long and 1 or 0}
end
if ARGV[3] == '0' then
  return found(0)
end
local line = {'who', ARGV[6], 'action', 'trim', 'removed'}
if audit then
  redis.call('XLEN', audit) -- fails where it is no stream
  if redis.acl_check_cmd and not redis.acl_check_cmd('XADD', audit, '*', unpack(line)) then
    return redis.call('XADD', audit, '*', unpack(line)) -- fails
  end
end

-- The first changes nothing. Behind it a server that is out of memory refuses no write.
local probe = redis.pcall('XTRIM', stream, 'MINID', '~', '0-0')
if failed(probe) then
  return failure(probe)
end
local err = write()
if err then
  return err
end
local removed = floor and redis.call('XTRIM', stream, 'MINID', '~', floor, 'LIMIT', ARGV[3]) or 0
if removed > 0 then
  note('trim-removed', text((record['trim-removed'] or 0) + removed))
  for _, group in ipairs(passed) do
    local field = 'needs:' .. group
    if less(groups[group], floor) and not string.find(record[field], ' lost$') then
      note(field, record[field] .. ' lost')
    end
  end
  write()
  if audit then
    line[#line + 1] = removed
    redis.call('XADD', audit, 'MAXLEN', '~', '10000', '*', unpack(line))
  end
end
return found(removed)
