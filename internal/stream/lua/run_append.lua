-- Appends pieces, or only renews the writer's lease. run_common.lua stands before this text.
-- ARGV[1] ID of the run, ARGV[2] TTL and ARGV[3] lease in ms, ARGV[4] epoch of the writer,
-- ARGV[5] number of the first piece, ARGV[6..] pieces
-- Returns {'appended'}, {'superseded'} by a newer epoch, {'ended', state}, or {'missing'} where the
-- record or a part of the pieces is no longer there. Only the first writes something.
--
-- An error reply: no piece was written. A lost reply: the same call again finds what is there
-- already, and writes nothing twice.
local id, ttl, lease, epoch, first = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local pieces = #ARGV - 5

if not run.epoch then
  return {'missing'}
elseif run.epoch ~= epoch then
  return {'superseded'}
elseif run.state ~= 'running' then
  return {'ended', run.state}
end
local number = tonumber(run.number)
if number > 0 and length == 0 then
  return {'missing'}
end
if pieces > 0 and number == first + pieces - 1 then
  return {'appended'}
elseif number ~= first - 1 then
  return {'missing'}
end

local reply = redis.pcall('HSET', control, 'lease', whole(now + lease))
for i = 1, pieces do
  if failed(reply) then -- of the first piece at the latest
    return failure(reply)
  end
  reply = redis.pcall('XADD', events, epoch .. '-' .. whole(number + i), 'p', ARGV[5 + i])
end
if failed(reply) then
  return failure(reply)
end
if pieces > 0 then
  redis.call('HSET', control, 'number', whole(number + pieces))
end
keep(id, ttl)
return {'appended'}
