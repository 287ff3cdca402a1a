-- Returns how a run stands, and ends it if its writer is lost. run_common.lua stands before this
-- text.
-- ARGV[1] ID of the run, ARGV[2] TTL in ms
-- Returns {} for none, or {epoch, state, text, the ms that are left of the writer's lease, started,
-- number, metadata, previous}.
--
-- An error reply: nothing was written. A lost reply: the same call again finds that it has ended.
local err = expire(ARGV[1], tonumber(ARGV[2]))
if err then
  return err
end
if not run.epoch then
  return {}
end
return {run.epoch, run.state, run.text, math.max(0, tonumber(run.lease) - now), run.started, run.number,
  run.metadata, run.previous}
