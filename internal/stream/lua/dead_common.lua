-- Shared by the other dead_*.lua, which follow this text in one script.
-- KEYS and ARGV are theirs; nothing here is returned to the client.

-- Whether redis.pcall has failed. A reply that is no table is a number or a text.
local function failed(reply)
  return type(reply) == 'table' and reply.err ~= nil
end

-- The error of redis.pcall in a form that keeps its code in front: Redis 6.2 hands some
-- errors over with a leading dash and would put another one before it.
local function failure(reply)
  return {err = (string.gsub(reply.err, '^%-', ''))}
end

-- Whether a text is a half of an entry ID in the form that Redis gives it: of 64 bits.
local function half(text)
  return string.find(text, '^%d+$') and (text == '0' or string.sub(text, 1, 1) ~= '0')
    and (#text < 20 or #text == 20 and text <= '18446744073709551615')
end

-- Whether a text is an entry ID in that form.
local function entryID(text)
  local ms, seq = string.match(text, '^(%d+)%-(%d+)$')
  return ms and half(ms) and half(seq)
end

-- The topic, group, entry ID and consumer that a dead letter names, or nothing when the entry is
-- no dead letter. Only the last 14 values count: an original that was a dead letter itself has
-- such a block further ahead. Any program may have written it: what is no entry ID in the form that
-- Redis gives it names a range of entries, or none.
local function block(fields)
  local n = #fields
  if n >= 14 and fields[n - 13] == '_dead_reason' and fields[n - 11] == '_dead_entry_id'
      and fields[n - 9] == '_dead_topic' and fields[n - 7] == '_dead_group'
      and fields[n - 5] == '_dead_consumer' and fields[n - 3] == '_dead_count'
      and fields[n - 1] == '_dead_time' and entryID(fields[n - 10]) then
    return fields[n - 8], fields[n - 6], fields[n - 10], fields[n - 4]
  end
end

-- The consumer that wrote these fields as the dead letter of this topic, group and entry, or nil.
local function marked(fields, topic, group, id)
  local t, g, e, consumer = block(fields)
  if t == topic and g == group and e == id then
    return consumer
  end
end

-- The ID and the consumer of this entry's dead letter among the newest 100 that stand before
-- `from`, or false; an error reply as the third result. One entry is read at a time, so that
-- large payloads do not add up.
local function find(dead, from, topic, group, id)
  for _ = 1, 100 do
    local reply = redis.pcall('XREVRANGE', dead, from, '-', 'COUNT', 1)
    if failed(reply) then
      return false, false, reply
    end
    if #reply == 0 then
      return false, false
    end
    local consumer = marked(reply[1][2], topic, group, id)
    if consumer then
      return reply[1][1], consumer
    end
    from = '(' .. reply[1][1]
  end
  return false, false
end

-- Acknowledges an entry. A return stream, which is not the topic, holds nothing that is acknowledged.
local function acknowledge(stream, topic, group, id)
  local acked = redis.pcall('XACK', stream, group, id)
  if not failed(acked) and stream ~= topic then
    redis.pcall('XDEL', stream, id)
  end
  return acked
end
