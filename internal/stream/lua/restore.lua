-- Creates a lost consumer group again where it stood, and puts entries that are
-- still held back into it.
-- KEYS[1] stream
-- ARGV[1] group, ARGV[2] consumer
-- ARGV[3] the greatest entry ID that is known to have been delivered
-- ARGV[4..] pairs of held entry ID and delivery count
-- Returns {created: 1 or 0 if the group is there again, its start ID, IDs put back ...}.
local key, group, consumer, start = KEYS[1], ARGV[1], ARGV[2], ARGV[3]

-- less compares entry IDs as decimal strings: Lua's numbers lose digits.
local function less(a, b)
  local ams, aseq = a:match('^(%d+)-(%d+)$')
  local bms, bseq = b:match('^(%d+)-(%d+)$')
  if #ams ~= #bms then return #ams < #bms end
  if ams ~= bms then return ams < bms end
  if #aseq ~= #bseq then return #aseq < #bseq end
  return aseq < bseq
end

local last = '0-0'
if redis.call('EXISTS', key) == 1 then
  local info = redis.call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
end
if less(last, start) then
  start = '0-0' -- another stream: all of it is new
end

local created = 1
local reply = redis.pcall('XGROUP', 'CREATE', key, group, start, 'MKSTREAM')
if type(reply) == 'table' and reply.err then
  if not string.find(reply.err, 'BUSYGROUP', 1, true) then return reply end
  created = 0
end
local out = {created, start}
for i = 4, #ARGV, 2 do
  if #redis.call('XRANGE', key, ARGV[i], ARGV[i]) > 0 then
    local args = {'XCLAIM', key, group, consumer, 0, ARGV[i], 'RETRYCOUNT', ARGV[i + 1], 'FORCE', 'JUSTID'}
    if #redis.call('XPENDING', key, group, ARGV[i], ARGV[i], 1) == 0 and #redis.call(unpack(args)) > 0 then
      out[#out + 1] = ARGV[i]
    end
  end
end
return out
