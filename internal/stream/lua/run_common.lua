-- Shared by the other run_*.lua, which follow this text in one script.
--
-- KEYS[1] the record of a run, a hash
--   epoch    of its writer: the greatest so far
--   state    running, or how it has ended: done, failed, stopped, lost
--   text     why it has failed
--   lease    until when the writer need not be heard of, in ms by the clock of this server
--   number   of the last piece of this epoch
--   started  when, in ms
--   token    of the call that has started it
--   metadata as the writer has given it
--   previous the epoch before, whose entries are kept for viewers that have not read them all
-- KEYS[2] its entries, a stream: pieces, whose IDs are EPOCH-NUMBER, and the end of each epoch, which
-- has the greatest ID that may follow. So an ID stands for the same entry forever, also where a
-- failover has lost the entry and it is written again.
-- KEYS[3] the index of its bucket, a sorted set: runs by the ms at which their keys expire
--
-- All three are in one hash slot and have a TTL. Only the first write of a script can fail: reads
-- have shown that the types of the keys fit, and Redis asks for memory, disk and replicas before the
-- first write only. The first is an HSET that changes nothing that matters, so that an XADD for which
-- the permission is missing leaves nothing behind either.

local control, events, index = KEYS[1], KEYS[2], KEYS[3]

-- Whether redis.pcall has failed.
local function failed(reply)
  return type(reply) == 'table' and reply.err ~= nil
end

-- The error of redis.pcall with its code in front: Redis 6.2 may put a dash before it.
local function failure(reply)
  return {err = (string.gsub(reply.err, '^%-', ''))}
end

local function whole(number)
  return string.format('%.0f', number)
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The record, without fields where there is none.
local run = {}
do
  local flat = redis.call('HGETALL', control)
  for i = 1, #flat, 2 do
    run[flat[i]] = flat[i + 1]
  end
  redis.call('ZCARD', index) -- fails where it is something else
end
local length = redis.call('XLEN', events)

-- Sets when the keys expire.
local function keep(id, ttl)
  redis.call('PEXPIRE', control, ttl)
  redis.call('PEXPIRE', events, ttl)
  redis.call('ZADD', index, whole(now + ttl), id)
  redis.call('PEXPIRE', index, ttl)
end

-- Ends the current epoch. Returns the failure, if there is one: then nothing was written.
local function finish(id, ttl, state, text)
  local added = redis.pcall('HSET', control, 'lease', run.lease)
  if not failed(added) then
    added = redis.pcall('XADD', events, run.epoch .. '-18446744073709551615', 'end', state, 'p', text)
  end
  if failed(added) then
    return failure(added)
  end
  run.state, run.text, run.lease = state, text, '0'
  redis.call('HSET', control, 'state', state, 'text', text, 'lease', '0')
  keep(id, ttl)
end

-- Ends a run whose writer's lease is over. Returns the failure, if there is one.
local function expire(id, ttl)
  if run.state ~= 'running' or tonumber(run.lease) > now then
    return nil
  end
  return finish(id, ttl, 'lost', '')
end
