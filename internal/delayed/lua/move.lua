-- Appends what is due to its target, one page of it, and takes it out of the store.
-- common.lua, and original.lua of internal/stream, stand before this text.
--
-- KEYS[1] due set, KEYS[2] delayed, KEYS[3] target stream, KEYS[4] control, KEYS[5] dead letters,
-- KEYS[6] leader key, KEYS[7] schedules
-- ARGV[1] topic's name, ARGV[2] group whose return stream is the target, or '' for the topic
-- ARGV[3] this mover, ARGV[4] how long it leads without a further call, in ms
-- ARGV[5] it stays the leader while the next entry is due within this many ms
-- ARGV[6] most entries of a page, ARGV[7] most bytes of it (one entry may exceed them)
-- ARGV[8] time of a dead letter as text
--
-- Returns {`leads`, `idle` or `other`, now, when the next entry is due or -1, entries appended, then for
-- each dead letter its delayed ID, or the entry ID of a retry, and the reason}. `idle` and `other` have moved nothing: nothing
-- is due soon, or another mover leads. An error reply means that nothing was
-- moved, but for `ERR moved n: ...`, which says that n entries were.
--
-- After a lost reply it is simply called again: what was moved is not in the store any more.

local due, delayed, target, control, dead, mover = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local schedules = KEYS[7]
local topic, group, self = ARGV[1], ARGV[2], ARGV[3]
local keep, most, bytes = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local now, due_next = milliseconds(), first_due(due)
local leader = redis.call('GET', mover)
local function stop_leading()
  redis.pcall('SET', mover, self, 'PX', 1)
end
if leader and leader ~= self and due_next >= 0 then
  return {'other', text(now), text(due_next), 0}
end
if due_next < 0 or due_next > now + keep then
  if leader == self then
    stop_leading()
  end
  return {'idle', text(now), text(due_next), 0}
end
local other = collision(control, topic)
if other then
  return other
end

-- Everything is read before the first write: while a slot of a cluster moves, a key that a write
-- has emptied cannot be read any more, and nothing is rolled back.
local kind = redis.call('TYPE', target).ok
if kind ~= 'none' and kind ~= 'stream' then
  return redis.error_reply('WRONGTYPE ' .. target .. ' holds no stream')
end
local refused
if group ~= '' then
  refused = 'the consumer group ' .. group .. ' does not exist'
  for _, info in ipairs(kind == 'stream' and redis.call('XINFO', 'GROUPS', target) or {}) do
    if info[2] == group then
      refused = nil
    end
  end
end
local retention = group == '' and redis.call('HGET', control, 'retention') or ''

-- The run of a schedule that a stored entry is, or nil. A schedule that cannot be read is none: its tick is
-- an entry like others.
local function run_of(id)
  local schedule = group == '' and string.match(id, '^schedule:(.*)$')
  local state = schedule and redis.pcall('HGET', schedules, 's:' .. schedule)
  if type(state) ~= 'string' then
    return nil
  end
  local tick, grace = string.match(state, ' (%d+) (%S+)$')
  local skip = tonumber(grace) and now > tick + grace
  return tick and {schedule = schedule, state = state, tick = tick, runs = redis.call('HGET', schedules, 'r:' .. schedule), skip = skip}
end

local page = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, most + 1)
local ids, entries, runs, size = {}, {}, {}, 0
for i = 1, math.min(#page, most) do
  size = size + redis.call('HSTRLEN', delayed, page[i])
  if i > 1 and size > bytes then
    break
  end
  ids[i], entries[i], runs[i] = page[i], redis.call('HGET', delayed, page[i]), run_of(page[i])
end
if #page > #ids then
  due_next = now
else
  local after = redis.call('ZRANGEBYSCORE', due, '(' .. text(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  due_next = after[2] and tonumber(after[2]) or -1
end

-- These change nothing. Without the permission an entry would be appended again and again. Behind
-- them a full server refuses no write: what is appended leaves the store, so no memory is needed.
local probes = {redis.pcall('ZREM', due, ''), redis.pcall('HDEL', delayed, '')}
for _, run in pairs(runs) do
  probes[3] = redis.pcall('HSET', schedules, 's:' .. run.schedule, run.state)
end
for _, probe in ipairs(probes) do
  if failed(probe) then
    return failure(probe)
  end
end
local leads = redis.pcall('SET', mover, self, 'PX', ARGV[4])
if failed(leads) then
  return failure(leads)
end
local moved, letters, appended, problem = {}, {}, 0, nil
for i, id in ipairs(ids) do
  local values, reason
  if entries[i] then
    values, reason = unpacked(entries[i])
    reason = reason and 'the stored entry cannot be read: ' .. reason
  else
    reason = 'there is no stored entry'
  end
  local run, reply = runs[i], nil
  if run and run.skip then
    reply = 'skipped'
  elseif values and not refused then
    reply = append(target, retention, now, values)
    appended = appended + 1
  else
    reason = reason or refused
    local origin, count = string.match(id, '%d+%-%d+$') or '0-0', '0'
    if values and group ~= '' then
      local n = #values
      local entry, delivered = values[n - 4], values[n]
      if #original(values) < n then
        origin, count = entry, delivered
      end
    end
    values = values or (entries[i] and {'_delayed', entries[i]} or {})
    for _, v in ipairs({'_dead_reason', reason, '_dead_entry_id', origin, '_dead_topic', topic,
        '_dead_group', group, '_dead_consumer', '', '_dead_count', count, '_dead_time', ARGV[8]}) do
      values[#values + 1] = v
    end
    reply = redis.pcall('XADD', dead, '*', unpack(values))
    if not failed(reply) then
      letters[#letters + 1] = group == '' and id or origin
      letters[#letters + 1] = reason
      reply = 'dead'
    end
  end
  if failed(reply) then
    problem = failure(reply)
    break
  end
  moved[i] = id
  if run then
    run.outcome = reply
  end
end
if #moved > 0 then
  redis.call('ZREM', due, unpack(moved))
  redis.call('HDEL', delayed, unpack(moved))
end
for _, run in pairs(runs) do
  if run.outcome then
    local recorded = redis.pcall('HSET', schedules, 'r:' .. run.schedule, with_run(run.runs, run.tick, run.outcome))
    problem = problem or failed(recorded) and failure(recorded) or nil
  end
end
if due_next < 0 or due_next > now + keep then
  stop_leading()
end
if problem then
  if #moved > 0 then
    problem.err = 'ERR moved ' .. #moved .. ': ' .. problem.err
  end
  return problem
end
return {'leads', text(now), text(due_next), appended, unpack(letters)}
