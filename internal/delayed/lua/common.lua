-- Stands before the other scripts of this folder, and those of internal/control and internal/retention. KEYS and
-- ARGV are theirs.

-- Whether redis.pcall has failed. A reply that is no table is a number or a text.
local function failed(reply)
  return type(reply) == 'table' and reply.err ~= nil
end

-- The error of redis.pcall in a form that keeps its code in front: Redis 6.2 returns some with a
-- leading dash.
local function failure(reply)
  return {err = (string.gsub(reply.err, '^%-', ''))}
end

-- Milliseconds of this server's clock.
local function milliseconds()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A number without an exponent.
local function text(n)
  return string.format('%.0f', n)
end

-- The first member of a sorted set is due at this time; -1 if there is none.
local function first_due(due)
  local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) or -1
end

-- Most names and values of an entry: unpack ends at 8,000 values, and a dead letter needs 14 more.
local max_values = 7900

-- The names and values of a stored entry, or nil and what is wrong with it.
local function unpacked(stored)
  if string.byte(stored, 1) ~= 1 then
    return nil, 'its version is not known'
  end
  local values, pos, size = {}, 2, #stored
  while pos <= size do
    if pos + 3 > size then
      return nil, 'it ends early'
    end
    local a, b, c, d = string.byte(stored, pos, pos + 3)
    local last = pos + 3 + ((a * 256 + b) * 256 + c) * 256 + d
    if last > size then
      return nil, 'it ends early'
    end
    values[#values + 1] = string.sub(stored, pos + 4, last)
    pos = last + 1
  end
  if #values == 0 or #values % 2 ~= 0 or #values > max_values then
    return nil, 'it has ' .. #values .. ' names and values'
  end
  return values
end

-- XADD with a retention of the form `maxlen ~ 1000` or `maxage ~ 60000` (milliseconds before now), or
-- without one.
local function append(key, retention, now, values)
  local bound, operator, n = string.match(retention, '^(%a+) ([~=]) (%d+)$')
  if bound == 'maxlen' then
    return redis.pcall('XADD', key, 'MAXLEN', operator, n, '*', unpack(values))
  elseif bound == 'maxage' then
    return redis.pcall('XADD', key, 'MINID', operator, text(math.max(0, now - n)), '*', unpack(values))
  end
  return redis.pcall('XADD', key, '*', unpack(values))
end

-- The error of a topic whose side keys belong to another one, or nil.
local function collision(control, topic)
  local owner = redis.call('HGET', control, 'topic')
  if owner and owner ~= topic then
    return redis.error_reply('TOPICCOLLISION the side keys belong to the topic ' .. owner)
  end
end

-- The runs of a schedule with one more: when it was due and the entry ID, or what else became of it.
local function with_run(runs, tick, outcome)
  local words = {}
  for word in string.gmatch(runs or '', '%S+') do
    words[#words + 1] = word
  end
  words[#words + 1] = tick .. '=' .. outcome
  return table.concat(words, ' ', math.max(1, #words - 19))
end
