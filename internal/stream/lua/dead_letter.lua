-- Moves one pending entry to the dead-letter stream, only while the consumer owns it.
-- dead_common.lua and paused.lua stand before this text.
--
-- KEYS[1] stream, KEYS[2] dead-letter stream, KEYS[3] control record of the topic (same hash slot)
-- ARGV[1] group, ARGV[2] consumer, ARGV[3] entry ID
-- ARGV[4] reason, ARGV[5] delivery count, ARGV[6] time
-- ARGV[7] 'maxlen', 'maxage' (milliseconds by the clock of this server) or '' for no trimming,
-- ARGV[8] '~' or '=', ARGV[9] the bound
-- ARGV[10] 'copy': the fields are those of the entry in Redis
--          'memory': the fields are ARGV[15...], for an entry that was trimmed
-- ARGV[11] 'again': an earlier run may have moved it, and a lost group was re-created with it since;
--          or ''
-- ARGV[12] topic and ARGV[13] entry ID that the dead letter names: those of the stream, or for an entry
--          of a return stream those of its original
-- ARGV[14] how often the group had been sought when the consumer took its name; see superseded
--
-- Returns one of
--   {'moved', dead entry ID}   appended and acknowledged, now or by a run of this script whose
--                              reply was lost
--   {'owner', consumer}        another consumer owns the entry; nothing was done
--   {'settled'}                the entry is not pending but still in the stream; nothing was done
--   {'gone'}                   'copy' only: the stream has no such entry; nothing was done
--   {'large', name, value...}  'copy' only: too many fields for one call in Lua; the claim was
--                              renewed, the fields are returned for a transaction (dead_guard.lua)
--   an error reply             of the command that failed; nothing was acknowledged, and what was
--                              appended was taken back (XDEL). Where the permission for XACK is missing
--                              nothing is appended in the first place, from Redis 7 on: the right
--                              to XDEL may be missing too, and every attempt would leave one more

local stream, dead = KEYS[1], KEYS[2]
local group, consumer, id = ARGV[1], ARGV[2], ARGV[3]
local topic, origin = ARGV[12], ARGV[13]
local memory = ARGV[10] == 'memory'

local newer = superseded(KEYS[3], group, ARGV[14])
if newer then
  return newer
end

local pending = redis.pcall('XPENDING', stream, group, id, id, 1)
if failed(pending) then
  return failure(pending)
end
local owner = pending[1] and pending[1][2]
if owner and owner ~= consumer then
  return {'owner', owner}
end

if owner and ARGV[11] == 'again' then
  local found, writer, unread = find(dead, '+', topic, group, origin)
  if unread then
    return failure(unread)
  end
  if found and writer == consumer then
    local acked = acknowledge(stream, topic, group, id)
    if failed(acked) then
      return failure(acked)
    end
    return {'moved', found}
  end
end

local fields
if memory then
  fields = {}
  for i = 15, #ARGV do
    fields[i - 14] = ARGV[i]
  end
else
  local entry = redis.pcall('XRANGE', stream, id, id)
  if failed(entry) then
    return failure(entry)
  end
  if #entry == 0 then
    return {'gone'}
  end
  fields = stream == topic and entry[1][2] or original(entry[1][2])
end

if not owner then
  -- An earlier run has ended it, or another consumer has, or the trimmed entry was swept out of
  -- the pending entries list. The dead-letter stream distinguishes the first from the rest.
  local found, writer, unread = find(dead, '+', topic, group, origin)
  if memory then
    if unread then
      return failure(unread)
    end
    if found then
      return {'moved', found}
    end
  else
    if found and writer == consumer then
      return {'moved', found}
    end
    return {'settled'}
  end
end

-- The command itself can only fail for a missing permission here, so it writes nothing.
if owner and redis.acl_check_cmd and not redis.acl_check_cmd('XACK', stream, group, id) then
  return failure(redis.pcall('XACK', stream, group, id))
end

-- unpack fails at about 8,000 values. The caller sends no more than that from memory.
if #fields > 7900 then
  local renewed = redis.pcall('XCLAIM', stream, group, consumer, 0, id, 'JUSTID')
  if failed(renewed) then
    return failure(renewed)
  end
  table.insert(fields, 1, 'large')
  return fields
end

local call = {'XADD', dead}
if ARGV[7] == 'maxlen' then
  call[3], call[4], call[5] = 'MAXLEN', ARGV[8], ARGV[9]
elseif ARGV[7] == 'maxage' then
  local now = redis.pcall('TIME')
  if failed(now) then
    return failure(now)
  end
  local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[9]
  call[3], call[4], call[5] = 'MINID', ARGV[8], string.format('%.0f', math.max(0, oldest))
end
call[#call + 1] = '*'
for i = 1, #fields do
  call[#call + 1] = fields[i]
end
local block = {
  '_dead_reason', ARGV[4], '_dead_entry_id', origin, '_dead_topic', topic, '_dead_group', group,
  '_dead_consumer', consumer, '_dead_count', ARGV[5], '_dead_time', ARGV[6],
}
for i = 1, #block do
  call[#call + 1] = block[i]
end

-- Nothing may be written before this append: Redis checks maxmemory only until a script's first
-- write.
local added = redis.pcall(unpack(call))
if failed(added) then
  return failure(added)
end
local acked = acknowledge(stream, topic, group, id)
if failed(acked) then
  redis.pcall('XDEL', dead, added)
  return failure(acked)
end
return {'moved', added}
