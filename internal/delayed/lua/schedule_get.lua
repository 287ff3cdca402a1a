-- Returns how a schedule stands.
-- common.lua stands before this text.
-- KEYS[1] due set, KEYS[2] schedules
-- ARGV[1] schedule ID
-- Returns now, the state, when the stored tick is due, the definition and the last runs; each but now is an
-- empty text if there is none.
local id = ARGV[1]
return {text(milliseconds()), redis.call('HGET', KEYS[2], 's:' .. id) or '', redis.call('ZSCORE', KEYS[1], 'schedule:' .. id) or '',
  redis.call('HGET', KEYS[2], 'd:' .. id) or '', redis.call('HGET', KEYS[2], 'r:' .. id) or ''}
