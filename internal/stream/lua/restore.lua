-- Creates a lost consumer group again where it stood, and puts entries that are
-- still held back into it.
-- less.lua stands before this text.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer
-- ARGV[3] the greatest entry ID that is known to have been delivered
-- ARGV[4] one of the first that were
-- ARGV[5..] pairs of held entry ID and delivery count
-- Returns {created: 1 or 0 if the group is there again, its start ID, IDs put back ...}.
-- The start is 0-0 if the stream is another one now.
local key, group, consumer, start, oldest = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function ms(id) return id:match('^%d+') end

local last, first = '0-0', '0-0'
if redis.call('EXISTS', key) == 1 then
  local info = redis.call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
    if info[i] == 'first-entry' and info[i + 1] then first = info[i + 1][1] end
  end
end
-- A stream that is deleted and written again within a millisecond uses the same IDs again.
local reused = ms(first) == ms(start) and ms(oldest) ~= ms(start)
if less(last, start) or reused then
  start = '0-0' -- another stream: all of it is new
end

local created = 1
local reply = redis.pcall('XGROUP', 'CREATE', key, group, start, 'MKSTREAM')
if type(reply) == 'table' and reply.err then
  if not string.find(reply.err, 'BUSYGROUP', 1, true) then return reply end
  created = 0
end
local out = {created, start}
if start == '0-0' then return out end
for i = 5, #ARGV, 2 do
  if #redis.call('XRANGE', key, ARGV[i], ARGV[i]) > 0 then
    local args = {'XCLAIM', key, group, consumer, 0, ARGV[i], 'RETRYCOUNT', ARGV[i + 1], 'FORCE', 'JUSTID'}
    if #redis.call('XPENDING', key, group, ARGV[i], ARGV[i], 1) == 0 and #redis.call(unpack(args)) > 0 then
      out[#out + 1] = ARGV[i]
    end
  end
end
return out
