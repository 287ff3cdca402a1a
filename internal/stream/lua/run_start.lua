-- Starts an epoch of a run, unless one has a writer. run_common.lua stands before this text.
-- ARGV[1] ID of the run, ARGV[2] TTL and ARGV[3] lease in ms, ARGV[4] token of the call,
-- ARGV[5] metadata
-- Returns {'started', epoch} or {'running', the ms that are left of its writer's lease}.
--
-- An error reply: nothing was written, or only that the writer before is lost. A lost reply: the
-- same call with the same token returns what the first one did.
local id, ttl, lease, token = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

if run.token == token then
  return {'started', run.epoch}
end
local err = expire(id, ttl)
if err then
  return err
end
if run.state == 'running' then
  return {'running', tonumber(run.lease) - now}
end

-- Greater than all before, also where the record, or the clock of a former master, is lost.
local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
local before = math.max(tonumber(run.epoch or '0'), newest and tonumber(string.match(newest[1], '^%d+')) or 0)
local epoch = whole(math.max(before + 1, now))
local set = redis.pcall('HSET', control, 'epoch', epoch, 'state', 'running', 'text', '', 'lease', whole(now + lease),
  'number', '0', 'started', whole(now), 'token', token, 'metadata', ARGV[5], 'previous', run.epoch or '')
if failed(set) then
  return failure(set)
end
-- Viewers of the epoch before may not have read all of it; those of older ones had their time.
if newest and run.epoch then
  redis.call('XTRIM', events, 'MINID', '~', run.epoch)
end
redis.call('ZREMRANGEBYSCORE', index, '-inf', '(' .. whole(now))
keep(id, ttl)
return {'started', epoch}
