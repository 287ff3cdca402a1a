-- Ends the transaction MULTI, XADD of a dead letter, EVAL of this text, EXEC: keeps the append
-- and acknowledges, or takes the append back. dead_common.lua and paused.lua stand before this
-- text.
--
-- A transaction cannot be conditional, and a command that fails in it does not stop the next
-- one. So the newest dead letter shows whether the append took place, and it is deleted when
-- the entry turns out to be none of this consumer's business: no other client sees it.
--
-- KEYS[1] stream, KEYS[2] dead-letter stream, KEYS[3] control record of the topic (same hash slot)
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] entry ID
-- ARGV[4] 'copy' or 'memory', ARGV[5] topic, ARGV[6] its entry ID, as in dead_letter.lua
-- ARGV[7] how often the group had been sought when the consumer took its name; see superseded
--
-- Returns one of
--   {'moved', dead entry ID}   acknowledged, now or by a run whose reply was lost
--   {'owner', consumer}        another consumer owns the entry; the append was taken back
--   {'settled'}                the entry is not pending; the append was taken back
--   {'failed'}                 nothing was appended (the XADD has the error); not acknowledged
--   an error reply             not acknowledged; the append was taken back where possible

local stream, dead = KEYS[1], KEYS[2]
local group, consumer, id = ARGV[1], ARGV[2], ARGV[3]
local topic, origin = ARGV[5], ARGV[6]

local newest = redis.pcall('XREVRANGE', dead, '+', '-', 'COUNT', 1)
if failed(newest) then
  return failure(newest)
end
if #newest == 0 or not marked(newest[1][2], topic, group, origin) then
  return {'failed'}
end
local added = newest[1][1]

local newer = superseded(KEYS[3], group, ARGV[7])
if newer then
  redis.pcall('XDEL', dead, added)
  return newer
end

local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if failed(pending) then
  redis.pcall('XDEL', dead, added)
  return failure(pending)
end
local owner = pending[1] and pending[1][2]

if owner == consumer then
  local acked = acknowledge(stream, topic, group, id)
  if failed(acked) then
    redis.pcall('XDEL', dead, added)
    return failure(acked)
  end
  -- An earlier run has moved it, if a lost group was re-created with the entry since.
  local earlier, writer = find(dead, '(' .. added, topic, group, origin)
  if earlier and writer == consumer then
    redis.pcall('XDEL', dead, added)
    return {'moved', earlier}
  end
  return {'moved', added}
end

if owner then
  redis.pcall('XDEL', dead, added)
  return {'owner', owner}
end

local earlier, writer = find(dead, '(' .. added, topic, group, origin)
if ARGV[4] == 'memory' and not earlier then
  return {'moved', added}
end
redis.pcall('XDEL', dead, added)
if earlier and (ARGV[4] == 'memory' or writer == consumer) then
  return {'moved', earlier}
end
return {'settled'}
