-- Puts a paused group at another position. seek_common.lua stands before this text.
-- ARGV[7] 'keep' or 'drop' what is pending, deferred and returned, ARGV[8] token of the call
-- Returns {'sought', the position}, now or by an earlier call with the token, {'running'} where the group is not
-- paused, or {'busy', consumers at work ...}. Only the first has changed something.
local other = collision(control, topic) or missing()
if other then
  return other
end
local field = 'seek:' .. group
local generation, before = sought(control, group)
local token = string.match(redis.call('HGET', control, field) or '', ' (%S+)$')
if token == ARGV[8] then
  return {'sought', before}
end
if paused(control, group) == 0 then
  return {'running'}
end
local of = streams()
local names = busy(of)
if #names > 0 then
  return {'busy', unpack(names)}
end

local function set(id, n)
  if n then
    return redis.pcall('XGROUP', 'SETID', stream, group, id, 'ENTRIESREAD', n)
  end
  return redis.pcall('XGROUP', 'SETID', stream, group, id)
end

-- Every command that comes behind the line in the audit stream, without effect: where one is refused, nothing is done.
local g, drop = named(stream, group), ARGV[7] == 'drop'
local probes = {
  set(g['last-delivered-id'], g['entries-read']),
  redis.pcall('XACK', stream, group, '0-1'),
}
for _, key in ipairs(of) do
  probes[#probes + 1] = redis.pcall('XINFO', 'CONSUMERS', key, group)
  probes[#probes + 1] = redis.pcall('XGROUP', 'DELCONSUMER', key, group, PROBE)
end
if drop then
  probes[#probes + 1] = redis.pcall('XTRIM', returns, 'MAXLEN', '9007199254740992')
  probes[#probes + 1] = redis.pcall('ZRANGE', due, 1, 0)
  probes[#probes + 1] = redis.pcall('ZREMRANGEBYRANK', due, 1, 0)
  probes[#probes + 1] = redis.pcall('HDEL', delayed, '')
end
for _, reply in ipairs(probes) do
  if failed(reply) then
    return failure(reply)
  end
end
local err = note('seek', 'from', g['last-delivered-id'], 'to', ARGV[4], 'pending', ARGV[7])
if err then
  return err
end

local position = ARGV[4]
if position == '$' then
  set('$')
  position = named(stream, group)['last-delivered-id']
end
set(position)
-- What comes again is pending no more.
each_pending(stream, '(' .. position, function(some)
  local ids = {}
  for i, p in ipairs(some) do
    ids[i] = p[1]
  end
  redis.call('XACK', stream, group, unpack(ids))
end)
for _, key in ipairs(of) do
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    local c = {}
    for i = 1, #flat, 2 do
      c[flat[i]] = flat[i + 1]
    end
    if drop or c.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', key, group, c.name)
    end
  end
end
if drop then
  redis.call('XTRIM', returns, 'MAXLEN', 0)
  repeat
    local ids = redis.call('ZRANGE', due, 0, page - 1)
    if #ids > 0 then
      redis.call('HDEL', delayed, unpack(ids))
      redis.call('ZREMRANGEBYRANK', due, 0, #ids - 1)
    end
  until #ids < page
end
redis.call('HSET', control, field, text(generation + 1) .. ' ' .. position .. ' ' .. ARGV[8])
return {'sought', position}
