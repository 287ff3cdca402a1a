-- Creates a lost consumer group again where it stood, and puts entries that are
-- still blocked into it.
-- less.lua, behind.lua and paused.lua stand before this text.
-- KEYS[1] stream, KEYS[2] control record of the topic, which may be left out
-- ARGV[1] group, ARGV[2] consumer
-- ARGV[3] the greatest entry ID that is known to have been delivered; '' for a return stream, which
-- holds only what is outstanding: its group begins at 0-0
-- ARGV[4] one of the first that were
-- ARGV[5] how many entries had been added up to ARGV[3], at least
-- ARGV[6] how often the group had been sought when the consumer took its name; see superseded
-- ARGV[7..] pairs of held entry ID and delivery count
-- Returns {created: 1 or 0 if the group is there again, its start ID, IDs put back ...}.
-- The start is 0-0 if the stream is another one now.
local key, group, consumer, start, oldest = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local newer = superseded(KEYS[2], group, ARGV[6])
if newer then
  return newer
end

-- How many entries are counted at most to recognize another stream.
local most = 1000

-- Reports whether this is another stream than the one in which `start` was delivered.
local function another()
  if redis.call('EXISTS', key) == 0 then return true end
  local newest, added = ends(key)
  if not newest then return false end
  if less(newest, start) then return true end
  if added then
    -- Of the same stream at least as many entries have been added, besides those behind start.
    local spare = added - tonumber(ARGV[5])
    return spare < 0 or (behind(key, start, false, math.min(spare + 1, most))) > spare
  end
  -- Before Redis 7: a stream that is deleted and written again within a millisecond uses the
  -- same IDs again. So does one that was trimmed down to that millisecond.
  local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  local function ms(id) return id:match('^%d+') end
  return first and ms(first[1]) == ms(start) and ms(oldest) ~= ms(start)
end

local outstanding = start == ''
if outstanding or another() then
  start = '0-0' -- all of it is new
end

local created = 1
local reply = redis.pcall('XGROUP', 'CREATE', key, group, start, 'MKSTREAM')
if type(reply) == 'table' and reply.err then
  if not string.find(reply.err, 'BUSYGROUP', 1, true) then return reply end
  created = 0
end
local out = {created, start}
if start == '0-0' and not outstanding then return out end
-- Redis 7 refuses to claim an entry that the stream does not have; Redis 6.2 does not.
local forces = named(key, group).lag == nil
for i = 7, #ARGV, 2 do
  local id = ARGV[i]
  if not (forces and #redis.call('XRANGE', key, id, id) == 0) and #redis.call('XPENDING', key, group, id, id, 1) == 0 then
    local args = {'XCLAIM', key, group, consumer, 0, id, 'RETRYCOUNT', ARGV[i + 1], 'FORCE', 'JUSTID'}
    if #redis.call(unpack(args)) > 0 then
      out[#out + 1] = id
    end
  end
end
return out
