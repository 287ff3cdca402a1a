-- Ends the epoch of a writer, or any, as stopping does. run_common.lua stands before this text.
-- ARGV[1] ID of the run, ARGV[2] TTL in ms, ARGV[3] epoch of the writer or '', ARGV[4] how it ends,
-- ARGV[5] why, ARGV[6] number of the writer's last piece
-- Returns {'ended', state}, now or by an earlier call, {'superseded'} or {'missing'}.
--
-- An error reply: nothing was written. A lost reply: the same call again finds that it has ended.
local id, ttl, epoch = ARGV[1], tonumber(ARGV[2]), ARGV[3]

if epoch == '' then -- it may be lost already
  local err = expire(id, ttl)
  if err then
    return err
  end
end
if not run.epoch then
  return {'missing'}
elseif epoch ~= '' and run.epoch ~= epoch then
  return {'superseded'}
elseif run.state ~= 'running' then
  return {'ended', run.state}
elseif epoch ~= '' and run.number ~= ARGV[6] or run.number ~= '0' and length == 0 then
  return {'missing'}
end
local err = finish(id, ttl, ARGV[4], ARGV[5])
if err then
  return err
end
return {'ended', ARGV[4]}
